"""How fast a step is: workloads, who takes part, the ceiling that memory sets, rounds in turns, and the tables of what came out."""
