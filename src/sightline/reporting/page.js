"use strict";
// Sorts and filters tables of the class "sortable", and galleries whose cards carry the score of each model. All controls are made
// here, so a page whose script does not run shows no dead ones.
{
  const make = (name, attributes, ...children) => {
    const node = document.createElement(name);
    Object.assign(node, attributes);
    node.append(...children);
    return node;
  };

  const number = (text) => parseFloat(text.replace(/,/g, ""));

  const compare = (one, other) => {
    const [a, b] = [number(one), number(other)];
    if (isNaN(a) && isNaN(b)) return one.localeCompare(other);
    return isNaN(a) ? 1 : isNaN(b) ? -1 : a - b;
  };

  for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0];
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = make("button", { type: "button", className: "sort" }, ...head.childNodes);
      button.addEventListener("click", () => {
        const falls = head.classList.contains("number") ? head.ariaSort !== "descending" : head.ariaSort === "ascending";
        for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", falls ? "descending" : "ascending");
        const text = (row) => row.cells[column].textContent.trim();
        const [filled, empty] = [[], []];
        for (const row of body.rows) (text(row) ? filled : empty).push(row);
        body.append(...filled.sort((a, b) => compare(text(a), text(b)) * (falls ? -1 : 1)), ...empty);
      });
      head.append(button);
    });
    if (body.rows.length > 5) {
      const field = make("input", { type: "search", placeholder: "filter rows" });
      field.setAttribute("aria-label", "filter rows");
      field.addEventListener("input", () => {
        const words = field.value.toLowerCase().split(/\s+/);
        for (const row of body.rows) {
          const text = row.textContent.toLowerCase();
          row.hidden = !words.every((word) => text.includes(word));
        }
      });
      table.parentElement.before(make("div", { className: "filter" }, field));
    }
  }

  for (const gallery of document.querySelectorAll("[data-models]")) {
    const models = JSON.parse(gallery.dataset.models);
    const cards = [...gallery.children];
    const choice = (label) => {
      const options = models.map((model, place) => make("option", { value: String(place) }, model));
      const select = make("select", {}, make("option", { value: "" }, "any model"), ...options);
      select.setAttribute("aria-label", label);
      return select;
    };
    const [better, worse] = [choice("better model"), choice("worse model")];
    const field = make("input", { type: "search", placeholder: "filter texts" });
    field.setAttribute("aria-label", "filter texts");
    const count = make("span", { className: "faint" });
    count.setAttribute("role", "status");
    const show = () => {
      let shown = 0;
      for (const card of cards) {
        const scores = JSON.parse(card.dataset.quality);
        const known = (choice) => (choice === "" ? scores : [scores[choice]]).filter((score) => score !== null);
        const [over, under] = [known(better.value), known(worse.value)];
        const isWanted = better.value + worse.value === "" || Math.max(...over) > Math.min(...under);
        card.hidden = !isWanted || !card.textContent.toLowerCase().includes(field.value.toLowerCase());
        shown += !card.hidden;
      }
      count.textContent = `${shown} of ${cards.length} shown`;
    };
    for (const control of [better, worse, field]) control.addEventListener("input", show);
    gallery.before(make("div", { className: "filter" }, better, " better than ", worse, field, count));
    show();
  }
}
