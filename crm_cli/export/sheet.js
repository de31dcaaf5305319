"use strict";
/* The contact sheet as a review tool. Without this script its pages are whole, but only to be looked at.

   entries.js calls crm.entries with all photos; cards-NNN.js calls crm.cards with the cards of a page, as they
   were written and escaped with the pages; thumbs/<id>-model.js calls crm.model with an asset. Each is loaded
   when it is needed. Nothing here makes elements out of texts other than those cards. */
(() => {
  const SCHEMA = "crm.decisions/1";
  const DECIDED = {approve: "Approved", reject: "Rejected", redo: "To be redone"};
  const KEYS = {
    j: "next", ArrowRight: "next", ArrowDown: "next", k: "previous", ArrowLeft: "previous", ArrowUp: "previous",
    a: "approve", r: "reject", e: "redo", u: "undo", v: "view", Enter: "view", "/": "search", "?": "help",
  };
  const WORST = {fail: 0, review: 1, "": 2, pass: 3};
  const ORDERS = {
    name: () => 0,
    verdict: (one, other) => rank(one) - rank(other),
    iou: (one, other) => (one.iou ?? 2) - (other.iou ?? 2),
    faces: (one, other) => (other.faces ?? -1) - (one.faces ?? -1),
    seconds: (one, other) => (other.seconds ?? -1) - (one.seconds ?? -1),
  };
  const HOME = location.href.replace(/[^/]*([?#].*)?$/, "");

  const $ = (id) => document.getElementById(id);
  const main = document.querySelector("main");
  const size = Number(main.dataset.size);
  const attention = main.querySelector(".attention");
  const review = $("review");
  const cards = new Map(Array.from(main.querySelectorAll(".card"), (card) => [card.id.slice(2), card]));
  const arrivals = new Map();
  const loading = new Map();

  let entries = [];
  let places = new Map();
  let shown = [];
  let current = null;
  let decisions = new Map();
  let past = [];
  let page = Number(main.dataset.page);
  const wanted = {text: "", kind: "", decision: "", sort: "name"};

  globalThis.crm = {
    entries: (list) => arrivals.set("entries", list),
    cards: (number, list) => arrivals.set(`cards ${number}`, list),
    model: (id, data) => arrivals.set(`model ${id}`, data),
  };

  /* Loading ------------------------------------------------------------------------------------------- */

  function load(source) {
    if (!loading.has(source)) {
      loading.set(source, new Promise((done, fail) => {
        const script = document.createElement("script");
        script.src = source;
        script.onload = () => { script.remove(); done(); };
        script.onerror = () => { script.remove(); loading.delete(source); fail(new Error(`${source} is missing`)); };
        document.head.append(script);
      }));
    }
    return loading.get(source);
  }

  async function cardOf(entry) {
    if (!cards.has(entry.id)) {
      const number = Math.floor(places.get(entry.id) / size);
      await load(`./cards-${String(number + 1).padStart(3, "0")}.js`);
      const template = document.createElement("template");
      for (const text of arrivals.get(`cards ${number}`) ?? []) {
        template.innerHTML = text;
        const card = template.content.firstElementChild;
        if (!cards.has(card.id.slice(2))) cards.set(card.id.slice(2), equip(card));
      }
      arrivals.delete(`cards ${number}`);
    }
    return cards.get(entry.id);
  }

  async function modelOf(id) {
    await load(`./thumbs/${id}-model.js`);
    const packed = Uint8Array.from(atob(arrivals.get(`model ${id}`)), (character) => character.charCodeAt(0));
    // Asked for again, it is loaded again: a thousand assets would not fit into memory.
    arrivals.delete(`model ${id}`);
    loading.delete(`./thumbs/${id}-model.js`);
    const plain = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Blob([await new Response(plain).arrayBuffer()], {type: "model/gltf-binary"});
  }

  /* What is shown, and in which order ----------------------------------------------------------------- */

  function rank(entry) {
    return entry.status === "failed" ? -1 : WORST[entry.verdict] ?? 2;
  }

  function decisionOf(entry) {
    return decisions.get(entry.id)?.decision ?? entry.decision;
  }

  function isWanted(entry) {
    const decision = decisionOf(entry);
    return (!wanted.kind || entry.status === wanted.kind || entry.verdict === wanted.kind)
      && (!wanted.decision || (wanted.decision === "none" ? !decision : decision === wanted.decision))
      && wanted.text.split(" ").every((word) => entry.text.includes(word));
  }

  let turn = 0;

  async function show() {
    const mine = ++turn;
    shown = entries.filter(isWanted).sort(ORDERS[wanted.sort]);
    page = Math.min(page, Math.max(0, Math.ceil(shown.length / size) - 1));
    const visible = await Promise.all(shown.slice(page * size, (page + 1) * size).map(cardOf));
    if (mine !== turn) return;  // asked for something else meanwhile
    const isPlain = !wanted.text && !wanted.kind && !wanted.decision && wanted.sort === "name" && page === 0;
    const empty = element("p", "empty", entries.length ? "Nothing matches." : "No photos.");
    main.replaceChildren(...(attention && isPlain ? [attention] : []), ...(visible.length ? visible : [empty]));
    for (const pages of document.querySelectorAll(".pages")) pages.remove();
    $("count").textContent = shown.length === entries.length ? `${words(shown.length)} photos`
      : `${words(shown.length)} of ${words(entries.length)} photos`;
    $("count").after(...pagers());
    main.after(...pagers());
    mark();
  }

  function pagers() {
    const count = Math.ceil(shown.length / size);
    if (count < 2) return [];
    const pages = element("nav", "pages");
    pages.setAttribute("aria-label", "Pages");
    const near = Array.from({length: count}, (_, index) => index)
      .filter((index) => index === 0 || index === count - 1 || Math.abs(index - page) < 3);
    for (const index of near) {
      const button = element("button", "", String(index + 1));
      button.type = "button";
      if (index === page) button.setAttribute("aria-current", "page");
      button.onclick = () => { page = index; show().then(() => scrollTo(0, 0)); };
      pages.append(button);
    }
    return [pages];
  }

  function drawKinds() {
    const kinds = [["", "All", entries.length]];
    for (const [field, names] of [["verdict", {pass: "Pass", review: "Review", fail: "Fail"}],
      ["status", {done: "Done", low: "Low confidence", kept: "Kept", failed: "Failed"}]]) {
      for (const [kind, name] of Object.entries(names)) {
        const count = entries.filter((entry) => entry[field] === kind).length;
        if (count) kinds.push([kind, name, count]);
      }
    }
    $("kinds").replaceChildren(...kinds.map(([kind, name, count]) => {
      const pill = element("button", kind, name);
      pill.type = "button";
      pill.dataset.kind = kind;
      pill.setAttribute("aria-pressed", String(kind === wanted.kind));
      pill.append(element("span", "", words(count)));
      pill.onclick = () => { wanted.kind = kind; page = 0; drawKinds(); show(); };
      return pill;
    }));
  }

  function words(count) {
    return count.toLocaleString("en");
  }

  function element(tag, classes, text = "") {
    const made = document.createElement(tag);
    if (classes) made.className = classes;
    made.textContent = text;
    return made;
  }

  /* Cards --------------------------------------------------------------------------------------------- */

  function equip(card) {
    const id = card.id.slice(2);
    const verbs = element("div", "verbs");
    for (const [verb, label] of [["view", "Open"], ["approve", "Approve"], ["reject", "Reject"], ["redo", "Redo"]]) {
      const button = element("button", verb, label);
      button.type = "button";
      button.dataset.verb = verb;
      button.onclick = () => { current = id; act(verb, {isClick: true}); };
      verbs.append(button);
    }
    card.append(verbs);
    card.onfocus = () => { current = id; mark(); };
    for (const link of card.querySelectorAll(".pictures a")) {
      link.onclick = (event) => {
        if (event.ctrlKey || event.metaKey || event.shiftKey) return;
        event.preventDefault();
        current = id;
        open();
      };
    }
    return card;
  }

  function mark() {
    for (const card of main.querySelectorAll(".card")) {
      const entry = entries[places.get(card.id.slice(2))];
      if (!entry) continue;
      card.toggleAttribute("aria-current", entry.id === current);
      const decision = decisionOf(entry);
      const badge = card.querySelector(".decided");
      badge.className = `badge decided ${decision}`;
      badge.textContent = DECIDED[decision] ?? "";
      badge.hidden = !decision;
      for (const button of card.querySelectorAll(".verbs [data-verb]:not(.view)")) {
        button.setAttribute("aria-pressed", String(button.dataset.verb === decision));
      }
    }
    const reviewed = entries.filter(decisionOf).length;
    $("progress").value = entries.length ? reviewed / entries.length : 0;
    $("reviewed").textContent = `${words(reviewed)} of ${words(entries.length)} reviewed`;
  }

  /* The large view ------------------------------------------------------------------------------------ */

  let viewer = null;
  let address = "";

  async function open() {
    const entry = entries[places.get(current)];
    if (!entry) return;
    const card = await cardOf(entry);
    const picture = (kind) => card.querySelector(`.${kind} img`)?.getAttribute("src") ?? "";
    $("review-name").replaceChildren(card.querySelector("h2 bdi").cloneNode(true));
    $("review-badges").replaceChildren(...Array.from(card.querySelectorAll(".badge:not(.decided)"), (badge) => badge.cloneNode(true)));
    $("review-place").textContent = `${shown.indexOf(entry) + 1} / ${shown.length}`;
    $("review-told").replaceChildren(...Array.from(
      card.querySelectorAll(".failure, .reasons, .warnings, footer > .facts, .time, .files"), (told) => told.cloneNode(true)));
    $("review-told").querySelector(".time")?.setAttribute("open", "");
    $("review-strip").replaceChildren(...["photo", "cutout", "views", "ccm", "turn", "seen"].flatMap((kind) =>
      Array.from(card.querySelectorAll(`figure.${kind}`), (figure) => figure.cloneNode(true))));
    for (const image of $("review-strip").querySelectorAll("img")) image.loading = "eager";
    const compare = review.querySelector(".compare");
    compare.hidden = !picture("cutout") || !picture("front");
    for (const [place, kind] of [["under", "cutout"], ["over", "front"]]) {
      if (picture(kind)) compare.querySelector(`.${place}`).src = picture(kind);
    }
    $("note").value = decisions.get(entry.id)?.note ?? entry.note;
    slide();
    press();
    if (!review.open) {
      review.showModal();
      $("review-name").focus();
    }
    mark();
    await view(entry);
  }

  async function view(entry) {
    const place = review.querySelector(".model");
    place.hidden = !entry.model;
    if (viewer) viewer.remove();
    URL.revokeObjectURL(address);
    viewer = null;
    if (!entry.model) return;
    $("review-wait").textContent = "Loading the 3D view";
    try {
      const [data] = await Promise.all([modelOf(entry.id), load("./model-viewer.js")]);
      if (current !== entry.id || !review.open) return;
      address = URL.createObjectURL(data);
      viewer?.remove();
      viewer = document.createElement("model-viewer");
      for (const [name, value] of Object.entries({
        src: address, alt: `3D view of ${entry.name}`, "camera-controls": "", "camera-orbit": "20deg 75deg auto",
        "interaction-prompt": "none", "shadow-intensity": "0.6", "tone-mapping": "neutral", "touch-action": "pan-y",
        loading: "eager",
      })) viewer.setAttribute(name, value);
      viewer.addEventListener("load", () => { $("review-wait").textContent = ""; });
      viewer.addEventListener("error", () => { $("review-wait").textContent = "This browser cannot draw it: it has no WebGL."; });
      const bar = element("div", "");
      bar.slot = "progress-bar";  // in place of the viewer's own: the words above it say enough
      viewer.append(bar);
      place.append(viewer);
    } catch (error) {
      $("review-wait").textContent = `No 3D view: ${error.message}`;
    }
  }

  function slide() {
    const share = Number($("slider").value);
    const laid = review.querySelector(".laid");
    laid.style.setProperty("--share", `${share}%`);
  }

  function press() {
    const decision = decisionOf(entries[places.get(current)]);
    for (const button of review.querySelectorAll(".verbs button")) {
      button.setAttribute("aria-pressed", String(button.dataset.do === decision));
    }
  }

  /* Decisions ----------------------------------------------------------------------------------------- */

  const shelf = `${SCHEMA} ${HOME}`;

  function restore() {
    try {
      const kept = JSON.parse(localStorage.getItem(shelf) ?? "{}");
      for (const [id, one] of Object.entries(kept)) {
        // Of an asset that was made anew since, nothing has been decided.
        if (entries[places.get(id)]?.edition === one.edition) decisions.set(id, one);
      }
    } catch { /* A browser that keeps nothing, or kept something else: decisions last as long as the page. */ }
  }

  function keep() {
    try {
      localStorage.setItem(shelf, JSON.stringify(Object.fromEntries(decisions)));
    } catch { /* As above. */ }
  }

  function put(entry, changes) {
    const before = decisions.get(entry.id);
    decisions.set(entry.id, {
      decision: decisionOf(entry), note: before?.note ?? entry.note, edition: entry.edition, ...changes,
    });
    keep();
    return before;
  }

  async function decide(verb, {isClick = false} = {}) {
    const entry = entries[places.get(current)];
    if (!entry) return;
    if (verb === "approve" && entry.status === "failed") {
      say("A failure cannot be approved: redo it, or reject it.");
      return;
    }
    // A button that is pressed comes up again; a key says once more what was said.
    const decision = isClick && decisionOf(entry) === verb ? "" : verb;
    past.push([entry.id, put(entry, {decision})]);
    say(decision ? `${DECIDED[decision]}: ${entry.name}` : `Undecided: ${entry.name}`);
    press();
    mark();
    if (decision) await move(1);
  }

  async function undo() {
    const last = past.pop();
    if (!last) { say("Nothing to undo."); return; }
    const [id, before] = last;
    if (before) decisions.set(id, before); else decisions.delete(id);
    keep();
    say(`Undone: ${entries[places.get(id)].name}`);
    await select(id);
  }

  function download() {
    const list = entries.filter((entry) => decisionOf(entry) || entry.decision).map((entry) => {
      const note = decisions.get(entry.id)?.note ?? entry.note;
      return {asset: entry.asset, id: entry.id, photo: entry.photo, decision: decisionOf(entry) || "none",
        edition: entry.edition, ...(note ? {note} : {})};
    });
    const text = JSON.stringify({schema: SCHEMA, decisions: list}, null, 1);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], {type: "application/json"}));
    link.download = "decisions.json";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    say(`${list.length} decisions downloaded. Next: crm redo decisions.json OUT`);
  }

  async function bring(file) {
    let list;
    try {
      const read = JSON.parse(await file.text());
      if (read.schema !== SCHEMA || !Array.isArray(read.decisions)) throw new Error();
      list = read.decisions;
    } catch {
      say("This is no decisions.json of a contact sheet.");
      return;
    }
    let taken = 0;
    for (const one of list) {
      const entry = entries[places.get(one?.id)];
      const isKnown = entry && (one.decision in DECIDED || one.decision === "none");
      if (!isKnown || (one.edition && one.edition !== entry.edition)) continue;
      put(entry, {decision: one.decision === "none" ? "" : one.decision, note: String(one.note ?? "").slice(0, 2000)});
      taken += 1;
    }
    past = [];
    say(`${taken} of ${list.length} decisions taken over${taken < list.length ? "; the others are of assets that are not here, or were made anew" : ""}.`);
    await show();
  }

  let quiet = 0;

  function say(text) {
    $("toast").textContent = text;
    clearTimeout(quiet);
    quiet = setTimeout(() => { $("toast").textContent = ""; }, 5000);
  }

  /* Moving about -------------------------------------------------------------------------------------- */

  async function move(step) {
    const here = shown.findIndex((entry) => entry.id === current);
    const next = shown[here < 0 ? page * size : here + step];
    if (next) await select(next.id);
  }

  async function select(id) {
    current = id;
    const place = shown.findIndex((entry) => entry.id === id);
    if (place >= 0 && Math.floor(place / size) !== page) {
      page = Math.floor(place / size);
      await show();
    }
    mark();
    if (review.open) { await open(); return; }
    const card = $(`a-${id}`);
    card?.focus({preventScroll: true});
    card?.scrollIntoView({block: "nearest"});
  }

  async function act(verb, how) {
    switch (verb) {
      case "next": await move(1); break;
      case "previous": await move(-1); break;
      case "approve": case "reject": case "redo": await decide(verb, how); break;
      case "undo": await undo(); break;
      case "view": if (review.open) review.close(); else { if (!current) await move(1); await open(); } break;
      case "close": for (const dialog of document.querySelectorAll("dialog[open]")) dialog.close(); break;
      case "search": if (review.open) review.close(); $("search").focus(); $("search").select(); break;
      case "help": if ($("keys").open) $("keys").close(); else $("keys").showModal(); break;
    }
  }

  function onKey(event) {
    const verb = KEYS[event.key];
    if (!verb || event.ctrlKey || event.metaKey || event.altKey) return;
    const at = event.target;
    if (!(at instanceof Element)) return;
    if (at.matches("input:not([type=range]), textarea, select")) return;
    // A slider, the 3D view and buttons have uses of their own for these.
    if (event.key.startsWith("Arrow") && at.matches("input, model-viewer")) return;
    if (event.key === "Enter" && !at.matches("body, .card")) return;
    if ($("keys").open && verb !== "help") return;
    event.preventDefault();
    act(verb);
  }

  async function start() {
    await load("./entries.js");
    entries = arrivals.get("entries") ?? [];
    places = new Map(entries.map((entry, index) => [entry.id, index]));
    for (const card of cards.values()) equip(card);
    restore();
    document.documentElement.classList.add("js");
    document.querySelector(".tools").hidden = false;
    drawKinds();
    if (!entries.some((entry) => entry.verdict)) document.querySelector("#sort [value=verdict]").remove();
    $("search").oninput = () => { wanted.text = $("search").value.toLowerCase(); page = 0; show(); };
    $("search").onkeydown = (event) => { if (event.key === "Escape" || event.key === "Enter") $("search").blur(); };
    $("decision").onchange = () => { wanted.decision = $("decision").value; page = 0; show(); };
    $("sort").onchange = () => { wanted.sort = $("sort").value; page = 0; show(); };
    $("download").onclick = download;
    $("import").onclick = () => $("file").click();
    $("file").onchange = async () => { await bring($("file").files[0]); $("file").value = ""; };
    $("help").onclick = () => act("help");
    $("slider").oninput = slide;
    $("note").onchange = () => { const entry = entries[places.get(current)]; if (entry) put(entry, {note: $("note").value}); };
    for (const button of document.querySelectorAll("dialog [data-do]")) button.onclick = () => act(button.dataset.do, {isClick: true});
    review.onclose = () => {
      viewer?.remove();
      viewer = null;
      URL.revokeObjectURL(address);
      const card = $(`a-${current}`);
      card?.focus({preventScroll: true});
      card?.scrollIntoView({block: "nearest"});
    };
    document.addEventListener("keydown", onKey);
    await show();
    if (location.hash) $(location.hash.slice(1))?.scrollIntoView();
  }

  start();
})();
