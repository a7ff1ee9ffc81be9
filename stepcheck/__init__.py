"""stepcheck"""
