// The gallery's detail view, search and local times. All of the page works without this file: it
// adds what needs it. Texts of the job become text nodes, never markup.
"use strict";
(() => {
  const find = (selector, within = document) => within.querySelector(selector);
  const findAll = (selector, within = document) => [...within.querySelectorAll(selector)];
  const make = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };
  document.documentElement.classList.add("with-script");
  // The signature of such a link is for this page alone.
  const isPresigned = /[?&](X-Amz-)?Signature=/i.test(location.search);
  if (isPresigned) findAll("details.hint").forEach(hint => { hint.open = true; });
  for (const time of findAll("time[datetime]")) {
    time.title = time.textContent;
    time.textContent = new Date(time.dateTime).toLocaleString([], {dateStyle: "medium", timeStyle: "long"});
  }

  // ------------------------------------------------------------------ the detail view
  let current;
  const visibleCards = () => findAll(".card:not(.elsewhere)").filter(card => card.checkVisibility());
  const step = distance => {
    const cards = visibleCards();
    const next = cards[cards.indexOf(current) + distance];
    if (next) show(next);
  };
  const button = (text, label, onclick) => make("button", {type: "button", textContent: text, ariaLabel: label, onclick});
  const title = make("h2", {id: "detail-title", tabIndex: -1, autofocus: true});
  const [position, stage, facts] = [make("span", {className: "position"}), make("div", {className: "stage"}), make("div")];
  const previous = button("←", "Previous row", () => step(-1));
  const next = button("→", "Next row", () => step(1));
  const dialog = make("dialog", {className: "detail"},
    make("header", {}, title, position, previous, next, button("✕", "Close", () => dialog.close())), stage, facts);
  dialog.setAttribute("aria-labelledby", title.id);
  document.body.append(dialog);
  dialog.addEventListener("close", () => find(".number a", current).focus());
  dialog.addEventListener("keydown", event => {
    const distance = {ArrowLeft: -1, ArrowRight: 1}[event.key];
    if (distance && event.target.type !== "range") { event.preventDefault(); step(distance); }
  });

  function show(card) {
    current = card;
    const cards = visibleCards();
    const place = cards.indexOf(card);
    [title.textContent, position.textContent] = [find(".number", card).textContent, `${place + 1} of ${cards.length} shown`];
    previous.disabled = place < 1;
    next.disabled = place === cards.length - 1;
    const details = find(".details", card).cloneNode(true);
    findAll("[id]", details).forEach(element => element.removeAttribute("id"));
    find(".number", details).remove();
    findAll("details", details).forEach(element => { element.open = true; });
    facts.replaceChildren(details);
    stage.replaceChildren();
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
    compare(card).catch(() => {});
  }

  async function compare(card) {
    const [before, after] = [".before img", ".after img"].map(selector => find(selector, card)?.cloneNode());
    const figures = findAll(".before-after > figure", card).map(figure => figure.cloneNode(true));
    stage.replaceChildren(make("div", {className: "side-by-side"}, ...figures));
    const enlarge = (...images) => ["before", "after"].forEach((side, number) => {
      const link = find(`.${side} a.large`, card);
      if (isPresigned || !link || !images[number]) return;
      const large = make("img", {src: link.href});
      large.decode().then(() => { images[number].src = large.src; }).catch(() => {});
    });
    const enlargeFigures = () => enlarge(find(".before img", stage), find(".after img", stage));
    if (!before || !after) return enlargeFigures();
    await Promise.all([before, after].map(image => { image.loading = "eager"; return image.decode(); }));
    const ratio = after.naturalWidth / after.naturalHeight;
    if (current !== card || !dialog.open) return;
    if (Math.abs(before.naturalWidth / before.naturalHeight / ratio - 1) > 0.03) return enlargeFigures();
    const range = make("input", {type: "range", value: 50, ariaLabel: "Share of the image that shows before"});
    const slider = make("div", {className: "slider"}, after, before, make("i"), range);
    slider.style.setProperty("--ratio", ratio);
    const move = () => slider.style.setProperty("--share", `${range.value}%`);
    range.addEventListener("input", move);
    move();
    const link = make("a", {href: find(".after a", card).href, textContent: "Open the full-size image"});
    stage.replaceChildren(slider, make("p", {}, "Before on the left, after on the right. ", link));
    enlarge(before, after);
  }

  document.addEventListener("click", event => {
    const card = event.target.closest(".card:not(.elsewhere)");
    const isPlain = !(event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey);
    const control = event.target.closest("a, button, summary, input");
    if (!card || !isPlain || String(getSelection()) || (control && !control.closest(".number, .before-after"))) return;
    event.preventDefault();
    show(card);
  });

  // ------------------------------------------------------------------ search and facets of the job
  const data = find("#search-index");
  if (!data) return;
  const {statuses, providers, remarks, instructions, files, per_page: perPage, rows} = JSON.parse(data.textContent);
  const entries = rows.map(([row, status, provider, marked, text, own], place) => ({
    row, place, status: statuses[status], provider: providers[provider],
    remarks: remarks.filter((_, bit) => marked >> bit & 1),
    text: `${own} ${instructions[text]}`, words: `${row} ${own} ${instructions[text]}`.toLowerCase(),
  }));
  const count = entries.length.toLocaleString();
  const label = `Search ${count} rows`;
  const form = make("form", {className: "search", role: "search"},
    make("input", {type: "search", name: "q", placeholder: label, ariaLabel: label}));
  const facets = {status: statuses, provider: providers, remark: remarks};
  const has = (entry, name, value) => (name === "remark" ? entry.remarks.includes(value) : entry[name] === value);
  for (const [name, values] of Object.entries(facets)) {
    const counted = values.map(value => [value, entries.filter(entry => has(entry, name, value)).length]);
    const options = counted.filter(([, count]) => count)
      .map(([value, count]) => make("option", {value, textContent: `${value} (${count.toLocaleString()})`}));
    form.append(make("select", {name, ariaLabel: name, hidden: options.length < (name === "remark" ? 1 : 2)},
      make("option", {value: "", textContent: `any ${name}`}), ...options));
  }
  const result = make("output", {});
  form.append(result);
  const toolbar = find(".toolbar");
  findAll("fieldset", toolbar).forEach(fieldset => fieldset.remove());
  toolbar.ariaLabel = "Search and filters of all rows";
  toolbar.prepend(form);
  const elsewhere = ({row, place, status, text}) => {
    const page = Math.floor(place / perPage);
    const href = `${files[page]}#r-${row}`;
    return make("article", {className: `card elsewhere s-${status}`}, make("div", {className: "details"},
      make("div", {className: "chips"}, make("h3", {className: "number"}, make("a", {href, textContent: `Row ${row}`})),
        make("span", {className: `chip ${status}`, textContent: status})),
      make("p", {className: "instruction", dir: "auto", textContent: text}),
      make("p", {className: "links"}, make("a", {href, textContent: `Open it on page ${page + 1}`}))));
  };
  // In the fragment: a presigned link allows no other query.
  const state = () => new URLSearchParams([...new FormData(form)].filter(([, value]) => value.trim()));
  function search() {
    const chosen = state();
    const words = form.q.value.toLowerCase().split(/\s+/).filter(Boolean);
    const hits = entries.filter(entry => words.every(word => entry.words.includes(word))
      && Object.keys(facets).every(name => !chosen.get(name) || has(entry, name, chosen.get(name))));
    const found = new Set(hits.map(hit => hit.row));
    findAll(".card.elsewhere").forEach(card => card.remove());
    findAll(".card").forEach(card => { card.hidden = !found.has(Number(card.id.slice(2))); });
    const others = chosen.size ? hits.filter(hit => hit.place >= perPage) : [];
    find(".cards").append(...others.slice(0, perPage).map(elsewhere));
    const listed = others.length > perPage ? `; of ${others.length.toLocaleString()} on other pages, the first ${perPage}` : "";
    const counts = `${hits.length.toLocaleString()} of ${count} rows`;
    result.textContent = chosen.size ? `${[...chosen.values()].join(", ")}: ${counts}${listed}` : "";
  }
  function readAddress() {
    const address = new URLSearchParams(location.hash.startsWith("#r-") ? "" : location.hash.slice(1));
    if (location.hash && !location.hash.includes("=") && location.hash !== "#all") return;
    for (const name of ["q", ...Object.keys(facets)]) form.elements[name].value = address.get(name) ?? "";
    search();
  }
  let timer;
  const changed = () => { location.replace(`#${state().size ? state() : "all"}`); search(); };
  form.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(changed, 120); });
  form.addEventListener("submit", event => { event.preventDefault(); changed(); });
  addEventListener("hashchange", readAddress);
  readAddress();
})();
