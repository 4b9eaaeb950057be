// The page of `delta-iris play`. It sends commands, and shows whatever view comes back; see messages.py.

const $ = (selector) => document.querySelector(selector);
const WORLDS = ["real", "imagined"];
const KEY_NAMES = { " ": "Space", ArrowLeft: "←", ArrowRight: "→", ArrowUp: "↑", ArrowDown: "↓" };
const SUMMARY = {
  "real agent": "The agent plays the real game.",
  "real human": "You play the real game.",
  "imagined agent": "The agent dreams: the world model imagines every frame.",
  "imagined human": "You play inside the world model: it imagines what your actions lead to.",
  "both agent": "The agent plays the real game, and the world model imagines it under the same actions.",
  "both human": "You play the real game, and the world model imagines it under the same actions.",
};

const socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/game`);
socket.binaryType = "arraybuffer";

let welcome = null; // what the server says of the agent
let view = null; // the newest view
let pixels = null; // of its games, RGB
let drawn = true; // whether it was shown
let errors = []; // [step, error] of the comparison
let pace = []; // [time, step] of the last seconds
let resume = false; // whether the game ran before the page was hidden
const chosen = {}; // world and player, until the server has followed
const held = []; // actions of the keys that are down

function send(command, value = null) {
  if (socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify({ do: command, value }));
}

// --- messages ---

socket.addEventListener("message", ({ data }) => {
  const length = new DataView(data).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, length)));
  if (welcome === null) {
    start(header);
    return;
  }
  collect(header);
  view = header;
  pixels = new Uint8Array(data, 4 + length);
  if (drawn) requestAnimationFrame(draw);
  drawn = false;
});

socket.addEventListener("close", ({ reason, code }) => {
  document.body.classList.add("closed");
  const why = reason || (code === 1012 || code === 1001 ? "the server has stopped" : "the connection is lost");
  $("#status").textContent = `${why} – reload the page to play again`;
  for (const each of document.querySelectorAll("button, input")) each.disabled = true;
});

// Keep what a single view does not hold: the error curve and the pace.
function collect(next) {
  const game = next.games.imagined ?? next.games.real;
  const before = view && (view.games.imagined ?? view.games.real);
  if (!before || game.step < before.step || next.world !== view.world) {
    errors = next.world === "both" ? [[game.step, next.error ?? 0]] : [];
    pace = [];
  }
  if (next.error !== null && (!errors.length || errors.at(-1)[0] < game.step)) errors.push([game.step, next.error]);
  const now = performance.now();
  if (!pace.length || pace.at(-1)[1] !== game.step) pace.push([now, game.step]);
  pace = pace.filter(([time]) => now - time < 3000);
}

// --- drawing ---

function start(header) {
  welcome = header;
  $("#agent").textContent = `${header.agent} · ${header.environment}`;
  $("#status").textContent = "";
  $("#speed").max = header.max_speed;
  document.title = `${header.agent} · Δ-IRIS`;
  for (const input of document.querySelectorAll("#world input")) {
    input.disabled = input.value !== "real" && !header.world_model;
  }
  $("#actions").replaceChildren(
    ...header.controls.map(({ action, name, keys }) => {
      const button = element("button", { type: "button", className: "action" });
      button.append(
        element("i"),
        element("kbd", { textContent: keys.map((key) => KEY_NAMES[key] ?? key.toUpperCase()).join(" ") || "–" }),
        element("span", { className: "name", textContent: name }),
        element("span", { className: "percent" }),
      );
      let isDown = false;
      button.addEventListener("pointerdown", () => {
        isDown = true;
        send("press", action);
      });
      for (const up of ["pointerup", "pointerleave", "pointercancel"]) {
        button.addEventListener(up, () => {
          if (isDown) send("release"); // a key that is held meanwhile stays down
          isDown = false;
        });
      }
      button.addEventListener("click", ({ detail }) => {
        if (detail === 0) tap(action); // by the keyboard
      });
      return button;
    }),
  );
}

function draw() {
  drawn = true;
  const { world, player, games } = view;
  for (const [name, value] of Object.entries({ world, player })) {
    if (chosen[name] === value) delete chosen[name];
    $(`#${name} input[value=${chosen[name] ?? value}]`).checked = true;
  }
  $("#summary").textContent = SUMMARY[`${world} ${player}`];
  drawFrames();
  drawNumbers();
  drawActions();
  drawComparison();
  drawCounts("#inventory", view.inventory);
  drawCounts("#achievements", view.achievements);

  const run = $("#run");
  run.textContent = view.running ? "Pause" : "Run";
  run.disabled = view.ended;
  $("#step").disabled = view.ended || player === "human" || view.running;
  if (document.activeElement !== $("#seed")) $("#seed").value = view.seed;
  if (document.activeElement !== $("#speed")) $("#speed").value = view.speed;
  $("#speed-value").textContent = `${view.speed} / s`;

  const ended = Object.entries(games).find(([, game]) => game.ended);
  $("#ended").hidden = !ended;
  if (ended) {
    const how = ended[1].ended === "terminated" ? "ended" : "reached its time limit";
    $("#ended p").textContent = `The ${ended[0]} episode ${how} after ${ended[1].step} steps.`;
  }

  const recording = view.recorded !== null;
  const record = $("#record");
  if (recording) record.dataset.made = "yes";
  record.classList.toggle("on", recording);
  record.setAttribute("aria-pressed", recording);
  record.querySelector(".label").textContent = recording ? `Stop (${view.recorded})` : "Record";
  for (const suffix of ["gif", "mp4"]) {
    const link = $(`#${suffix}`);
    link.hidden = recording || !record.dataset.made;
    link.href = `${welcome.recordings}.${suffix}`;
    link.setAttribute("aria-label", `Download the recording as ${suffix.toUpperCase()}`);
  }

  const [first, last] = [pace[0], pace.at(-1)];
  const rate = pace.length > 2 ? ((last[1] - first[1]) * 1000) / (last[0] - first[0]) : 0;
  $("#pace").textContent = view.running && rate > 0 ? `now ${rate.toFixed(1)} / s` : "";
}

function drawFrames() {
  const [height, width] = view.size;
  let offset = 0;
  for (const name of WORLDS) {
    const figure = $(`figure[data-game=${name}]`);
    figure.hidden = !(name in view.games);
    if (figure.hidden) continue;
    const canvas = figure.querySelector("canvas");
    if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
    const context = canvas.getContext("2d");
    const image = context.createImageData(width, height);
    for (let i = 0, j = offset; i < image.data.length; i += 4, j += 3) {
      image.data[i] = pixels[j];
      image.data[i + 1] = pixels[j + 1];
      image.data[i + 2] = pixels[j + 2];
      image.data[i + 3] = 255;
    }
    context.putImageData(image, 0, 0);
    offset += 3 * width * height;
  }
}

const signed = (x) => {
  if (x === null) return "–";
  const text = x.toFixed(Math.abs(x) < 10 ? 2 : 1);
  return Number(text) < 0 ? text.replace("-", "−") : text.replace("-", "");
};

// For each row, what stands in the cell of a game, and how it is marked.
const ROWS = {
  Step: (game) => [game.step],
  Reward: (game) => [signed(game.reward), game.reward > 0.05 ? "good" : game.reward < -0.05 ? "bad" : ""],
  Return: (game) => [signed(game.total)],
  "End probability": ({ end_probability: p }) => [p === null ? "–" : `${(100 * p).toFixed(1)} %`, p > 0.2 ? "bad" : ""],
  Value: (game) => [signed(game.value)],
  Tokens: (game) => [game.tokens ? game.tokens.map(chip) : "–"],
};

function drawNumbers() {
  const body = $("#numbers tbody");
  if (!body.rows.length) {
    for (const label of Object.keys(ROWS)) {
      const row = body.insertRow();
      row.append(element("th", { scope: "row", textContent: label }));
      for (const name of WORLDS) row.insertCell().dataset.game = name;
    }
  }
  for (const cell of document.querySelectorAll("#numbers [data-game]")) cell.hidden = !(cell.dataset.game in view.games);
  Object.values(ROWS).forEach((content, index) => {
    WORLDS.forEach((name, column) => {
      if (!(name in view.games)) return;
      const [value, mark = ""] = content(view.games[name]);
      const cell = body.rows[index].cells[column + 1];
      cell.className = mark;
      cell.replaceChildren(...[value].flat());
    });
  });
}

function chip(token) {
  const result = element("span", { className: "token", textContent: token });
  result.style.background = `hsl(${(token * 137.5) % 360} 70% 75%)`;
  return result;
}

function drawActions() {
  const human = view.player === "human";
  $("#keys-note").textContent = human
    ? "Press a key or a button; hold it to go on. “Run” lets time pass by itself."
    : "The policy’s probabilities.";
  [...$("#actions").children].forEach((button, action) => {
    const p = view.probabilities[action];
    button.disabled = !human || view.ended;
    button.style.setProperty("--p", p);
    button.querySelector(".percent").textContent = `${Math.round(100 * p)} %`;
    button.classList.toggle("taken", action === view.action);
  });
}

function drawComparison() {
  const compared = view.world === "both";
  $("#comparison").hidden = !compared;
  if (!compared) return;
  const limit = welcome.max_pixel_error;
  const { parting } = view;
  const reasons = {
    frame: `the mean pixel error exceeds ${100 * limit}\u00a0%`,
    reward: `the rewards differ by more than ${welcome.max_reward_error}`,
    end: "one episode ends and the other does not",
  };
  $("#parting").textContent = parting
    ? `Imagination and reality part at step ${parting.step}: ${reasons[parting.reason]}.`
    : `They agree so far: the mean pixel error is at most ${100 * limit}\u00a0%, with the same rewards.`;
  const curve = $("#curve");
  const width = Math.max(200, curve.clientWidth);
  curve.setAttribute("viewBox", `0 0 ${width} 130`);
  const [left, right, top, bottom] = [34, width - 2, 8, 110];
  const steps = Math.max(30, errors.at(-1)?.[0] ?? 0);
  const most = Math.max(2 * limit, ...errors.map(([, error]) => error));
  const x = (step) => left + ((right - left) * step) / steps;
  const y = (error) => bottom - ((bottom - top) * error) / most;
  const line = (className, x1, y1, x2, y2) => svg("line", { class: className, x1, y1, x2, y2 });
  const text = (content, at, anchor) => {
    const result = svg("text", { ...at, "text-anchor": anchor });
    result.textContent = content;
    return result;
  };
  const parts = [
    line("axis", left, bottom, right, bottom),
    line("axis", left, top, left, bottom),
    line("limit", left, y(limit), right, y(limit)),
    text(`${100 * limit} %`, { x: left - 4, y: y(limit) + 3 }, "end"),
    text(`${Math.round(100 * most)} %`, { x: left - 4, y: top + 4 }, "end"),
    text("0", { x: left - 4, y: bottom + 3 }, "end"),
    text(`${steps} steps`, { x: right, y: bottom + 15 }, "end"),
    svg("polyline", { class: "line", points: errors.map(([step, error]) => `${x(step)},${y(error)}`).join(" ") }),
  ];
  if (parting) {
    parts.push(line("parting", x(parting.step), top, x(parting.step), bottom));
    parts.push(text(`step ${parting.step}`, { x: x(parting.step), y: bottom + 15 }, "middle"));
  }
  curve.replaceChildren(curve.querySelector("title"), ...parts);
}

function drawCounts(selector, counts) {
  const names = Object.keys(counts);
  const section = $(selector);
  section.hidden = !names.length;
  const list = section.querySelector("ul");
  const key = JSON.stringify(counts);
  if (list.dataset.key === key) return;
  list.dataset.key = key;
  const unlocked = names.filter((name) => counts[name]);
  const count = section.querySelector(".count");
  if (count) count.textContent = `${unlocked.length} of ${names.length}`;
  list.replaceChildren(
    ...names.map((name) => {
      const item = element("li", { className: counts[name] ? "on" : "", textContent: name.replaceAll("_", " ") });
      if (counts[name]) item.append(" ", element("b", { textContent: counts[name] }));
      return item;
    }),
  );
}

function element(name, properties = {}) {
  return Object.assign(document.createElement(name), properties);
}

function svg(name, attributes) {
  const result = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) result.setAttribute(key, value);
  return result;
}

// --- controls ---

function tap(action) {
  send("press", action);
  send("release");
}

function restart(seed) {
  if (!Number.isInteger(seed) || seed < 0 || seed > 2147483647) {
    $("#status").textContent = "the seed must be a whole number from 0 to 2147483647";
    return;
  }
  $("#status").textContent = "";
  send("reset", seed);
}

for (const name of ["world", "player"]) {
  $(`#${name}`).addEventListener("change", ({ target }) => {
    chosen[name] = target.value;
    send(name, target.value);
  });
}
$("#run").addEventListener("click", () => view && send("run", !view.running));
$("#step").addEventListener("click", () => send("step"));
$("#restart").addEventListener("click", () => restart($("#seed").valueAsNumber));
$("#seed").addEventListener("keydown", ({ key, target }) => {
  if (key === "Enter") restart(target.valueAsNumber);
});
$("#ended button").addEventListener("click", () => restart((view.seed + 1) % 2147483648));
$("#speed").addEventListener("input", ({ target }) => send("speed", target.valueAsNumber));
$("#record").addEventListener("click", () => view && send("record", view.recorded === null));

// After a click the keys act in the game again, not on the button.
document.addEventListener("click", ({ detail, target }) => {
  if (detail > 0 && target.closest("button, .segmented, .button")) $("#frames").focus({ preventScroll: true });
});

function actionOf(event) {
  if (!welcome || view?.player !== "human" || event.ctrlKey || event.metaKey || event.altKey) return null;
  const typing = event.target.closest("input, select, textarea");
  const pressing = event.target.closest("button, a") && ["Enter", " ", "Tab"].includes(event.key);
  // Tab is a key of the game only within the frame, which Shift + Tab leaves.
  const leaving = event.key === "Tab" && (event.shiftKey || document.activeElement !== $("#frames"));
  if (typing || pressing || leaving) return null;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  return welcome.controls.find(({ keys }) => keys.includes(key))?.action ?? null;
}

document.addEventListener("keydown", (event) => {
  const action = actionOf(event);
  if (action === null) return;
  event.preventDefault();
  if (event.repeat) return;
  held.push({ code: event.code, action });
  send("press", action);
});

document.addEventListener("keyup", (event) => {
  const index = held.findIndex(({ code }) => code === event.code);
  if (index < 0) return;
  const wasLast = index === held.length - 1;
  held.splice(index, 1);
  if (!held.length) send("release");
  else if (wasLast) send("press", held.at(-1).action);
});

window.addEventListener("blur", () => {
  if (held.splice(0).length) send("release");
});

// A hidden page would only heat the processor.
document.addEventListener("visibilitychange", () => {
  if (document.hidden) {
    resume = view?.running ?? false;
    if (resume) send("run", false);
  } else if (resume) {
    send("run", true);
  }
});
