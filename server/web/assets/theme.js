// Runs before the page is painted, so that a chosen theme never flashes the other one.
// Without a choice the page follows the system.
(() => {
  const chosen = localStorage.getItem('trumpet-theme');
  if (chosen === 'light' || chosen === 'dark') document.documentElement.dataset.theme = chosen;
})();
