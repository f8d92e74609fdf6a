"use strict";
// One page over the server's own interface (docs/guide.md, "Serve"). No library, no request to anybody else.

const TEXT = {
  en: {
    language: "Language", drop: "Drop pictures here", paste: "or paste one, or", choose: "Choose pictures",
    stays: "Your pictures stay with this server; nothing is sent to anybody else.", what: "What shall be done?",
    denoise: "Remove noise", dejpeg: "Remove JPEG artefacts", deblur: "Remove blur", upscale: "Enlarge", scale: "Times",
    model: "Model", automatic: "chosen for you", format: "Save as", strength: "Strength", key: "API key", start: "Restore",
    try: "Try the middle first", saveall: "Save all", before: "before", after: "after", compare: "Before and after",
    fit: "Whole picture", full: "100 %", save: "Save", keys: "Drag to move; the arrow keys move it too.",
    options: "Options", pictures: "Pictures", cancel: "Cancel", remove: "Remove", show: "Compare", waiting: "waiting",
    queued: "waiting for its turn", running: "being restored", done: "done in {s} s, {w} x {h} pixels", sample: "middle of {name}",
    cancelled: "cancelled", sending: "being sent", lost: "the server does not answer; is it still running?",
    needkey: "this server asks for an API key", count: "{done} of {all} done", added: "{n} added", view: "{name}: before and after",
    stage: "Picture before and after; arrow keys move it",
  },
  zh: {
    language: "语言", drop: "把图片拖到这里", paste: "也可以粘贴，或者", choose: "选择图片",
    stays: "图片只留在这台服务器上，不会发给任何人。", what: "想做什么？",
    denoise: "去除噪点", dejpeg: "消除 JPEG 压缩痕迹", deblur: "去除模糊", upscale: "放大", scale: "倍数",
    model: "模型", automatic: "自动选择", format: "保存为", strength: "强度", key: "API 密钥", start: "开始复原",
    try: "先试中间一块", saveall: "全部保存", before: "之前", after: "之后", compare: "前后对比",
    fit: "整张图片", full: "100 %", save: "保存", keys: "拖动可移动图片，方向键亦可。",
    options: "选项", pictures: "图片", cancel: "取消", remove: "移除", show: "对比", waiting: "等待中",
    queued: "排队中", running: "正在复原", done: "完成，用时 {s} 秒，{w} x {h} 像素", sample: "{name} 的中间部分",
    cancelled: "已取消", sending: "正在发送", lost: "服务器没有回应，它还在运行吗？",
    needkey: "这台服务器要求 API 密钥", count: "已完成 {done} / {all}", added: "已加入 {n} 张", view: "{name}：前后对比",
    stage: "图片前后对比，方向键可移动",
  },
};
const SAMPLE = 256; // pixels: edge of the crop that "try" restores
const $ = (id) => document.getElementById(id);
let language = (localStorage.getItem("language") || navigator.language || "en").startsWith("zh") ? "zh" : "en";
let models = [];
let items = [];
let shown = null;
const view = { scale: 1, x: 0, y: 0, full: false };

const t = (name, values = {}) => TEXT[language][name].replace(/\{(\w+)\}/g, (_, key) => values[key]);

function translate() {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const node of document.querySelectorAll("[data-t]")) node.textContent = t(node.dataset.t);
  $("options").setAttribute("aria-label", t("options"));
  $("list").setAttribute("aria-label", t("pictures"));
  $("stage").setAttribute("aria-label", t("stage"));
  $("language").value = language;
  offerModels();
  items.forEach(draw);
  count();
  if (shown) title();
}

function task() { return document.querySelector("input[name=task]:checked").value; }

function offerModels() {
  const before = $("model").value;
  const scale = Number($("scale").value);
  const fitting = models.filter((m) => m.tasks.includes(task()) && (task() !== "upscale" || m.scale === scale));
  $("model").replaceChildren(new Option(t("automatic"), ""), ...fitting.map((m) => new Option(m.name, m.name)));
  $("model").value = fitting.some((m) => m.name === before) ? before : "";
  $("scale-label").hidden = task() !== "upscale";
}

async function call(path, options = {}) {
  const headers = { ...(options.headers || {}) };
  if ($("key").value) headers["X-API-Key"] = $("key").value;
  let answer;
  try { answer = await fetch(path, { ...options, headers }); } catch { throw new Error(t("lost")); }
  if (answer.status === 401) { $("key-label").hidden = false; throw new Error(t("needkey")); }
  if (!answer.ok) {
    let said = `${answer.status}`;
    try { said = (await answer.json()).error || said; } catch { /* not ours */ }
    const error = new Error(said); error.status = answer.status; throw error;
  }
  return answer;
}

async function askModels() {
  try { models = (await (await call("v1/models")).json()).models; offerModels(); say(""); } catch (error) { say(error.message); }
}

function say(text) { $("status").textContent = text; }

function count() {
  const done = items.filter((i) => i.state === "done").length;
  if (items.length) say(t("count", { done, all: items.length }));
  $("start").disabled = !items.some((i) => i.state === "waiting");
  $("try").disabled = !items.some((i) => i.file && !i.sample);
  $("save-all").disabled = !done;
}

function add(files) {
  for (const file of files) append({ file, name: file.name || "picture.png", state: "waiting", progress: 0 });
  if (files.length) { count(); say(t("added", { n: files.length })); }
}

function append(item) {
  item.row = document.createElement("li");
  item.before = URL.createObjectURL(item.file);
  items.push(item);
  $("list").append(item.row);
  draw(item);
  return item;
}

function button(text, act, label) {
  const made = document.createElement("button");
  made.type = "button"; made.className = "button plain"; made.textContent = text;
  made.setAttribute("aria-label", label); made.addEventListener("click", act);
  return made;
}

function draw(item) {
  const focused = item.row.contains(document.activeElement);
  const picture = document.createElement("img");
  picture.alt = ""; picture.src = item.preview || item.before;
  picture.addEventListener("error", () => { picture.removeAttribute("src"); }, { once: true });
  const middle = document.createElement("div");
  const name = document.createElement("div"); name.className = "name"; name.textContent = item.sample ? t("sample", { name: item.name }) : item.name;
  const said = document.createElement("div"); said.className = "said";
  if (item.state === "failed") { said.classList.add("bad"); said.textContent = item.error; }
  else if (item.state === "done") said.textContent = t("done", { s: (item.seconds || 0).toFixed(1), w: item.size[0], h: item.size[1] });
  else said.textContent = t(item.state);
  middle.append(name, said);
  if (["queued", "running", "sending"].includes(item.state)) {
    const bar = document.createElement("progress"); bar.max = 1;
    if (item.progress > 0) bar.value = item.progress;
    bar.setAttribute("aria-label", item.name); middle.append(bar);
  }
  const actions = document.createElement("div"); actions.className = "actions";
  if (item.state === "done") actions.append(button(t("show"), () => show(item), `${t("show")}: ${item.name}`));
  const busy = ["queued", "running", "sending"].includes(item.state);
  actions.append(button(t(busy ? "cancel" : "remove"), () => drop(item, busy), `${t(busy ? "cancel" : "remove")}: ${item.name}`));
  item.row.replaceChildren(picture, middle, actions);
  if (focused) actions.querySelector("button").focus();
}

async function drop(item, busy) {
  item.stop = true;
  if (item.url) { try { await call(item.url, { method: "DELETE" }); } catch { /* gone already */ } }
  if (busy) { item.state = "cancelled"; item.url = null; draw(item); count(); return; }
  items = items.filter((other) => other !== item);
  item.row.remove(); URL.revokeObjectURL(item.before);
  if (shown === item) { shown = null; $("view").hidden = true; }
  count();
}

function form(item) {
  const data = new FormData();
  data.append("file", item.file, item.name);
  data.append("task", task());
  if (task() === "upscale") data.append("scale", $("scale").value);
  if ($("model").value) data.append("model", $("model").value);
  data.append("format", item.sample ? "png" : $("format").value);
  data.append("strength", String(Number($("strength").value) / 100));
  return data;
}

const pause = (ms) => new Promise((go) => setTimeout(go, ms));

async function restore(item) {
  item.state = "sending"; item.progress = 0; item.stop = false; draw(item);
  try {
    const body = form(item);
    let made;
    while (!made && !item.stop) { // a full queue is no error here: wait for room
      try { made = await call("v1/jobs", { method: "POST", body }); }
      catch (error) { if (error.status !== 503) throw error; await pause(2000); }
    }
    if (item.stop) { if (made) await call(made.headers.get("location").slice(1), { method: "DELETE" }); return; }
    item.url = made.headers.get("location").slice(1);
    for (;;) {
      const job = await (await call(item.url)).json();
      if (item.stop) return;
      const changed = job.state !== item.state || job.progress !== item.progress;
      Object.assign(item, { state: job.state, progress: job.progress, seconds: job.seconds, size: job.size, error: job.error });
      if (changed) draw(item);
      if (!["queued", "running"].includes(job.state)) break;
      await pause(400);
    }
    if (item.state === "done") {
      item.result = await (await call(`${item.url}/result`)).blob();
      item.resultName = nameOf(item);
      item.preview = await shownUrl(item, "input", item.before);
      item.after = await shownUrl(item, "result", URL.createObjectURL(item.result));
    } else item.state = item.state === "cancelled" ? "cancelled" : "failed";
  } catch (error) {
    if (item.stop) return;
    item.state = "failed"; item.error = error.message;
  }
  draw(item); count();
  if (item.state === "done" && (!shown || item.sample)) show(item);
}

function nameOf(item) {
  const stem = item.name.replace(/\.[^.]*$/, "") || "picture";
  return `${stem}_restored.${$("format").value}`;
}

/** A URL that this browser can show: the file's own, or the server's 8-bit preview of it (TIFF, camera raw). */
async function shownUrl(item, which, own) {
  const probe = new Image();
  probe.src = own;
  try { await probe.decode(); return own; } catch { /* ask the server */ }
  return URL.createObjectURL(await (await call(`${item.url}/preview/${which}`)).blob());
}

async function start() {
  const waiting = items.filter((i) => i.state === "waiting" || (i.stale && !i.sample));
  for (const item of waiting) { item.stale = false; if (item.url) { call(item.url, { method: "DELETE" }).catch(() => {}); item.url = null; } }
  $("start").disabled = true;
  const next = async () => { for (let item = waiting.shift(); item; item = waiting.shift()) await restore(item); };
  await Promise.all([next(), next()]); // two at a time: one is sent while one is computed
  count();
}

async function tryMiddle() {
  const item = shown && !shown.sample && items.includes(shown) ? shown : items.find((i) => i.file && !i.sample);
  if (!item) return;
  try {
    const bitmap = await createImageBitmap(item.file);
    const w = Math.min(SAMPLE, bitmap.width), h = Math.min(SAMPLE, bitmap.height);
    const canvas = document.createElement("canvas"); canvas.width = w; canvas.height = h;
    canvas.getContext("2d").drawImage(bitmap, (bitmap.width - w) >> 1, (bitmap.height - h) >> 1, w, h, 0, 0, w, h);
    const blob = await new Promise((go) => canvas.toBlob(go, "image/png"));
    await restore(append({ file: new File([blob], item.name), name: item.name, state: "waiting", progress: 0, sample: true }));
  } catch (error) { say(error.message); }
}

function title() { $("view-title").textContent = t("view", { name: shown.sample ? t("sample", { name: shown.name }) : shown.name }); }

async function show(item) {
  shown = item;
  $("view").hidden = false; title();
  $("before").src = item.preview; $("after").src = item.after;
  $("before").alt = t("before"); $("after").alt = t("after");
  $("save").href = URL.createObjectURL(item.result); $("save").download = item.resultName;
  await $("after").decode().catch(() => {});
  view.full = item.sample === true; place(true);
  $("view").scrollIntoView({ block: "nearest" });
}

function place(anew) {
  const stage = $("stage"), image = $("after");
  const w = image.naturalWidth || 1, h = image.naturalHeight || 1;
  const fit = Math.min(stage.clientWidth / w, stage.clientHeight / h);
  view.scale = view.full ? 1 / (window.devicePixelRatio || 1) : Math.min(fit, 4);
  if (anew) { view.x = (stage.clientWidth - w * view.scale) / 2; view.y = (stage.clientHeight - h * view.scale) / 2; }
  const held = (value, room) => room >= 0 ? room / 2 : Math.min(0, Math.max(room, value));
  view.x = held(view.x, stage.clientWidth - w * view.scale);
  view.y = held(view.y, stage.clientHeight - h * view.scale);
  const pan = $("pan");
  pan.style.width = `${w}px`; pan.style.height = `${h}px`;
  pan.style.transform = `translate(${view.x}px, ${view.y}px) scale(${view.scale})`;
  stage.classList.toggle("full", view.full);
  $("fit").setAttribute("aria-pressed", String(!view.full)); $("full").setAttribute("aria-pressed", String(view.full));
  const x = (stage.clientWidth * Number($("slider").value)) / 100;
  const inside = (x - view.x) / view.scale;
  image.style.clipPath = `inset(0 0 0 ${Math.min(Math.max(inside, 0), w)}px)`;
  $("before").style.clipPath = `inset(0 ${w - Math.min(Math.max(inside, 0), w)}px 0 0)`;
  $("line").style.left = `${x - 1}px`;
}

function move(dx, dy) { view.x += dx; view.y += dy; place(false); }

function listen() {
  $("language").addEventListener("change", () => { language = $("language").value; localStorage.setItem("language", language); translate(); });
  $("files").addEventListener("change", () => { add([...$("files").files]); $("files").value = ""; });
  document.addEventListener("paste", (event) => add([...event.clipboardData.files]));
  for (const kind of ["dragover", "dragenter"]) document.addEventListener(kind, (event) => { event.preventDefault(); $("drop").classList.add("over"); });
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) $("drop").classList.remove("over"); });
  document.addEventListener("drop", (event) => { event.preventDefault(); $("drop").classList.remove("over"); add([...event.dataTransfer.files]); });
  $("options").addEventListener("submit", (event) => { event.preventDefault(); start(); });
  $("options").addEventListener("change", (event) => {
    if (["task"].includes(event.target.name) || event.target.id === "scale") offerModels();
    if (event.target.id === "key") askModels();
    if (event.target.id !== "strength" || event.type === "change") again();
  });
  $("strength").addEventListener("input", () => { $("strength-value").textContent = `${$("strength").value} %`; });
  $("try").addEventListener("click", tryMiddle);
  $("save-all").addEventListener("click", async () => {
    for (const item of items.filter((i) => i.state === "done" && !i.sample)) {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(item.result); link.download = item.resultName; link.click();
      await pause(300);
    }
  });
  $("slider").addEventListener("input", () => place(false));
  $("fit").addEventListener("click", () => { view.full = false; place(true); });
  $("full").addEventListener("click", () => { view.full = true; place(true); });
  window.addEventListener("resize", () => { if (shown) place(false); });
  const stage = $("stage");
  stage.addEventListener("pointerdown", (event) => { stage.setPointerCapture(event.pointerId); stage.dataset.held = "1"; });
  stage.addEventListener("pointermove", (event) => { if (stage.dataset.held) move(event.movementX, event.movementY); });
  for (const kind of ["pointerup", "pointercancel"]) stage.addEventListener(kind, () => { delete stage.dataset.held; });
  stage.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [40, 0], ArrowRight: [-40, 0], ArrowUp: [0, 40], ArrowDown: [0, -40] }[event.key];
    if (step) { event.preventDefault(); move(...step); }
  });
}

/** Other options: what is done may be done again. */
function again() {
  for (const item of items) {
    if (item.sample) continue;
    if (item.state === "done") item.stale = true;
    if (item.state === "failed" || item.state === "cancelled") { item.state = "waiting"; draw(item); }
  }
  $("start").disabled = !items.some((i) => i.state === "waiting" || i.stale);
}

listen();
translate();
askModels();
