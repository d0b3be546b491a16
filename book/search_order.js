// How the search orders what it found: lessons first, then the glossary and the pages, and the
// reference last. Within each part the scores are Sphinx's own.
var Scorer = {
  score: ([page, , , , score]) =>
    score + (page.startsWith("notebooks/") ? 2000 : page.startsWith("api/") ? 0 : 1000),
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: {0: 15, 1: 5, 2: -5},
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
