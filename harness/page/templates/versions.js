// What the page of versions does beyond its links: one stop for the tab key in the matrix, and buttons that copy.

for (const block of document.querySelectorAll("[data-copy]")) block.before(copier(block.textContent, block.dataset.copy));
const matrix = $(".versions");
if (matrix) rove(matrix);
document.documentElement.dataset.ready = Math.round(performance.now());
