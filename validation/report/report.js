"use strict";
document.documentElement.classList.add("js");

for (const button of document.querySelectorAll(".copy")) {
  button.addEventListener("click", async () => {
    const code = button.previousElementSibling;
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    } catch {
      // No clipboard here: select the text, ready to be copied by hand.
      getSelection().selectAllChildren(code);
    }
  });
}

const openTarget = () => {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target instanceof HTMLDetailsElement) {
    target.open = true;
    target.scrollIntoView();
  }
};
addEventListener("hashchange", openTarget);
openTarget();

// Paper has no way to open what is folded.
let folded = [];
addEventListener("beforeprint", () => {
  folded = [...document.querySelectorAll("details:not([open])")];
  for (const details of folded) details.open = true;
});
addEventListener("afterprint", () => {
  for (const details of folded) details.open = false;
});

for (const player of document.querySelectorAll(".player")) {
  const frames = JSON.parse(player.dataset.frames);
  const notes = JSON.parse(player.dataset.notes);
  const rows = Number(player.dataset.rows);
  const slider = player.querySelector("input");
  const now = player.querySelector(".now");
  const buttons = Object.fromEntries([...player.querySelectorAll("[data-do]")].map((b) => [b.dataset.do, b]));
  const curves = player.parentElement.querySelectorAll("svg.curve[data-x]");
  const last = frames.length - 1;
  let at = Number(slider.value);
  let timer = 0;

  const zoom = player.querySelector("[data-set=zoom]");
  const set = (select) => {
    player.style.setProperty(`--${select.dataset.set}`, select.value);
    if (select.dataset.set === "gain") player.querySelector(".gain").textContent = select.value;
    player.classList.toggle("reduced", zoom.value < 1);
  };

  // Where they can, reference and candidate stand beside each other.
  const panes = player.querySelector(".panes");
  const fits = () => panes.offsetWidth >= 2 * panes.querySelector(".pane").offsetWidth + 16;
  while (zoom.selectedIndex > 0 && !fits()) {
    zoom.selectedIndex -= 1;
    set(zoom);
  }

  const show = (index) => {
    at = Math.max(0, Math.min(last, index));
    player.style.setProperty("--x", Math.floor(at / rows));
    player.style.setProperty("--y", at % rows);
    slider.value = at;
    slider.setAttribute("aria-valuetext", notes[at]);
    now.textContent = notes[at];
    for (const figure of player.querySelectorAll("[data-count]")) {
      figure.classList.toggle("ended", at >= Number(figure.dataset.count));
    }
    for (const curve of curves) {
      const x = Number(curve.dataset.x) + frames[at] * Number(curve.dataset.step);
      for (const name of ["x1", "x2"]) curve.querySelector(".cursor").setAttribute(name, x);
    }
  };
  const stop = () => {
    clearInterval(timer);
    timer = 0;
    buttons.play.textContent = "Play";
  };
  // The candidate in the reference's place: as the button says, and the other way while the pointer is there.
  let pressed = false;
  let pointed = false;
  const flip = () => {
    const flipped = pressed !== pointed;
    const [reference, candidate] = player.querySelectorAll("[data-count]");
    const sprite = reference.querySelector(".sprite");
    const caption = reference.querySelector("figcaption");
    reference.origin ??= { sprite: sprite.className, name: caption.textContent };
    sprite.className = flipped ? candidate.querySelector(".sprite").className : reference.origin.sprite;
    caption.textContent = flipped ? "candidate, flipped in" : reference.origin.name;
    caption.className = flipped ? "candidate" : "reference";
    reference.querySelector(".pane").setAttribute("aria-label", caption.textContent);
  };
  if (buttons.flip) {
    const pane = player.querySelector("[data-count] .pane");
    for (const [event, inside] of [["mouseenter", true], ["mouseleave", false]]) {
      pane.addEventListener(event, () => {
        pointed = inside;
        flip();
      });
    }
  }
  const actions = {
    play: () => {
      if (timer) return stop();
      buttons.play.textContent = "Pause";
      timer = setInterval(() => show(at === last ? 0 : at + 1), 1000 / Number(player.dataset.rate));
    },
    back: () => { stop(); show(at - 1); },
    forward: () => { stop(); show(at + 1); },
    first: () => { stop(); show(0); },
    last: () => { stop(); show(last); },
    worst: () => { stop(); show(Number(player.dataset.worst)); },
    flip: () => {
      pressed = !pressed;
      buttons.flip.setAttribute("aria-pressed", String(pressed));
      flip();
    },
  };
  for (const [name, button] of Object.entries(buttons)) button.addEventListener("click", actions[name]);
  slider.addEventListener("input", () => { stop(); show(Number(slider.value)); });
  for (const select of player.querySelectorAll("[data-set]")) {
    select.addEventListener("change", () => set(select));
  }
  const keys = {
    " ": "play", ArrowLeft: "back", ArrowRight: "forward", Home: "first", End: "last",
    w: "worst", W: "worst", f: "flip", F: "flip",
  };
  player.addEventListener("keydown", (event) => {
    const action = keys[event.key];
    // A button takes the space bar itself, a list its arrows.
    const taken = event.target.tagName === "SELECT" || (event.target.tagName === "BUTTON" && event.key === " ");
    if (!action || taken || event.ctrlKey || event.metaKey || event.altKey) return;
    if ((action === "flip" || action === "worst") && !buttons[action]) return;
    event.preventDefault();
    actions[action]();
  });
  for (const curve of curves) {
    curve.classList.add("seeks");
    curve.addEventListener("click", (event) => {
      const box = curve.getBoundingClientRect();
      const x = (event.clientX - box.left) * curve.viewBox.baseVal.width / box.width;
      const frame = (x - Number(curve.dataset.x)) / Number(curve.dataset.step);
      stop();
      // The nearest of the frames that are embedded.
      show(frames.reduce((best, f, n) => (Math.abs(f - frame) < Math.abs(frames[best] - frame) ? n : best), 0));
    });
  }
  show(at);
}
