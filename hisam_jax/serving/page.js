"use strict";
const $ = id => document.getElementById(id);
const history_ = [], pictures = new Map();
let asked = 0, browsed = 0, most = 12;

async function call(path, body) {
  const headers = {};
  if ($("token").value) headers.authorization = "Bearer " + $("token").value;
  if (body) headers["content-type"] = "application/json";
  const answer = await fetch(path, body ? {method: "POST", headers, body: JSON.stringify(body)} : {headers});
  if (answer.status === 401) $("locked").hidden = false;
  if (!answer.ok) throw new Error((await answer.json()).error);
  return answer;
}

function picture(item) {
  if (!pictures.has(item)) {
    pictures.set(item, call("items/" + encodeURIComponent(item) + "/picture")
      .then(answer => answer.blob()).then(URL.createObjectURL).catch(() => null));
  }
  return pictures.get(item);
}

function tile(item, title, note, act) {
  const button = document.createElement("button"), name = document.createElement("b"), small = document.createElement("small");
  let face = document.createElement("span");
  button.className = "tile"; button.title = title; button.dataset.item = item;
  face.className = "blank"; face.textContent = title.slice(0, 1);
  name.textContent = title; small.textContent = note;
  button.append(face, name, small);
  button.onclick = act;
  picture(item).then(url => {
    if (!url) return;
    const image = document.createElement("img");
    image.src = url; image.alt = "";
    face.replaceWith(image);
  });
  return button;
}

async function tried(work) {
  $("problem").textContent = "";
  try { await work(); }
  catch (error) { $("problem").textContent = error.message; }
}

const recommend = () => tried(async () => {
  const turn = ++asked, way = $("way").value;
  const body = {history: history_.map(one => ({item: one.item})), k: most, ...(way && {way})};
  const start = performance.now(), answer = await (await call("recommend", body)).json();
  if (turn !== asked) return;
  $("took").textContent = `${(performance.now() - start).toFixed(1)} ms, of which ${answer.milliseconds.toFixed(1)} in the service`;
  $("reasons").hidden = true;
  $("found").replaceChildren(...answer.items.map(one => {
    const shown = tile(one.item, one.title, one.score.toFixed(3), () => add(one));
    return made("div", {className: "cell"}, shown, made("button", {className: "why", textContent: "why", onclick: () => explain(one)}));
  }));
});

function made(tag, fields, ...inside) {
  const element = Object.assign(document.createElement(tag), fields);
  element.append(...inside);
  return element;
}

function bars(rows) {
  const most = Math.max(...rows.map(([, value]) => Math.abs(value)), 1e-9);
  return made("div", {className: "bars"}, ...rows.flatMap(([name, value, note = ""]) => {
    const fill = made("i", {className: value < 0 ? "less" : ""});
    fill.style.width = `${50 * Math.abs(value) / most}%`;
    return [made("span", {textContent: name, title: name}), made("div", {className: "bar"}, fill), made("output", {textContent: value.toFixed(3) + note})];
  }));
}

const explain = one => tried(async () => {
  const turn = asked, way = $("way").value, body = {history: history_.map(({item}) => ({item})), item: one.item};
  if (["retrieval", "generation"].includes(way)) body.way = way;
  const why = await (await call("explain", body)).json();
  if (turn !== asked) return;
  const past = why.past.map(({title, drop, share}) => [title, drop, `, ${Math.round(100 * share)} %`]);
  const parts = why.parts.map(({name, code, value}) => [code === null ? name : `${name}: ${code}`, value]);
  const codes = made("button", {textContent: why.item.codes.join(", "), onclick: () => { $("tree").open = true; browse(why.item.codes.slice(0, -1)); }});
  $("reasons").replaceChildren(
    made("h2", {textContent: `Why ${one.title}?`}, made("span", {className: "note", textContent: `${why.how}: score ${why.score.toFixed(3)}`})),
    ...(past.length ? [made("p", {className: "note", textContent: "What the score loses without each item of your history"}), bars(past)] : []),
    made("p", {className: "note", textContent: "What each part of the item adds to the score"}), bars(parts),
    made("div", {className: "row"}, made("span", {className: "note", textContent: "its ID"}), codes));
  $("reasons").hidden = false;
});

const browse = (prefix, offset = 0) => tried(async () => {
  const turn = ++browsed;
  const found = await (await call(`ids?prefix=${prefix.join(",")}&offset=${offset}&limit=12`)).json();
  if (turn !== browsed) return;
  const step = (text, to, from = 0, off = false) => made("button", {textContent: text, disabled: off, onclick: () => browse(to, from)});
  const small = items => made("div", {className: "tiles lead"}, ...items.map(item => tile(item.item, item.title, "", () => add(item))));
  $("path").replaceChildren(step("all", []), ...prefix.map((code, place) => step(code, prefix.slice(0, place + 1))),
    made("span", {className: "note", textContent: `${found.items} items, ${found.total} next codes`}));
  const rows = found.children.map(child => made("div", {className: "branch"},
    made("div", {className: "row"}, step(child.code, [...prefix, child.code]), made("span", {className: "note", textContent: child.items})), small(child.examples)));
  if (!found.total) rows.push(small(found.examples));
  if (found.total > 12) rows.push(made("div", {className: "row"},
    step("before", prefix, Math.max(offset - 12, 0), !offset), step("after", prefix, offset + 12, offset + 12 >= found.total)));
  $("branches").replaceChildren(...rows);
});

function add(one) { history_.push(one); show(); }

function show() {
  $("history").replaceChildren(...history_.map((one, place) =>
    tile(one.item, one.title, "", () => { history_.splice(place, 1); show(); })));
  recommend();
}

const search = () => tried(async () => {
  const found = await (await call("items?limit=48&text=" + encodeURIComponent($("text").value))).json();
  $("total").textContent = `${found.total} found; click those you like`;
  $("items").replaceChildren(...found.items.map(one => tile(one.item, one.title, "", () => add(one))));
});

const begin = () => tried(async () => {
  const {now} = await (await call("releases")).json();
  $("locked").hidden = !$("token").value;
  $("release").textContent = `release ${now.release}, ${now.items} items`;
  most = Math.min(12, now.k);
  $("way").replaceChildren(...now.ways.map(way => new Option(way, way)));
  await search();
  await recommend();
});

let typing;
$("text").oninput = () => { clearTimeout(typing); typing = setTimeout(search, 150); };
$("way").onchange = recommend;
$("tree").ontoggle = () => { if ($("tree").open && !browsed) browse([]); };
$("clear").onclick = () => { history_.length = 0; show(); };
$("token").onchange = begin;
begin();
