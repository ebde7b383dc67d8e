// A few images on the simplex of three classes: the reader sets similarities and starts, and steps the replicator dynamics.
{
  const SIDE = 400, HEIGHT = (SIDE * Math.sqrt(3)) / 2, MARGIN = 34, MOST = 40;
  const CORNERS = [[0, HEIGHT], [SIDE, HEIGHT], [SIDE / 2, 0]];
  const SVG = "http://www.w3.org/2000/svg";

  const text = value => String(value).replace(/[&<>"]/g, sign => `&#${sign.charCodeAt(0)};`);

  const place = x => [0, 1].map(k => x.reduce((sum, share, c) => sum + share * CORNERS[c][k], 0));

  // The distribution at a place of the picture; a place outside the triangle stands for the nearest shares inside.
  function shares([left, top]) {
    const third = (HEIGHT - top) / HEIGHT, second = left / SIDE - third / 2;
    const raw = [1 - second - third, second, third].map(share => Math.max(share, 0.002));
    const total = raw.reduce((a, b) => a + b);
    return raw.map(share => share / total);
  }

  const support = (W, X) => W.map(row => X[0].map((_, c) => row.reduce((sum, w, j) => sum + w * X[j][c], 0)));

  // X_ic <- X_ic (W X)_ic / sum_k X_ik (W X)_ik; a row that hears nothing stays as it is.
  function replicate(W, X) {
    const S = support(W, X);
    return X.map((row, i) => {
      const grown = row.map((share, c) => share * S[i][c]), total = grown.reduce((a, b) => a + b);
      return total > 0 ? grown.map(share => share / total) : row;
    });
  }

  function consistency(W, X) {
    const S = support(W, X);
    return X.reduce((sum, row, i) => sum + row.reduce((part, share, c) => part + share * S[i][c], 0), 0);
  }

  function element(name, attributes, parent) {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    parent?.append(made);
    return made;
  }

  function mount(root) {
    const { corners, images, similarity } = JSON.parse(root.dataset.simplex);
    const initial = { W: similarity.map(row => [...row]), X: images.map(image => [...image.start]), T: 3 };
    let { W, X, T } = structuredClone(initial);
    let timer = null;

    root.innerHTML = `<div class="stage"><svg viewBox="${-MARGIN} ${-MARGIN} ${SIDE + 2 * MARGIN} ${HEIGHT + 2 * MARGIN}"
      role="group" aria-label="Assignments on the simplex of three classes"></svg><div class="panel"></div></div>`;
    const svg = root.querySelector("svg"), panel = root.querySelector(".panel");
    element("polygon", { class: "face", points: CORNERS.join(" ") }, svg);
    CORNERS.forEach((corner, c) => {
      for (const share of [0.25, 0.5, 0.75]) {
        const [a, b] = CORNERS.filter((_, other) => other !== c)
          .map(end => end.map((value, k) => share * corner[k] + (1 - share) * value));
        element("line", { class: "share", x1: a[0], y1: a[1], x2: b[0], y2: b[1] }, svg);
      }
      const name = element("text", {
        x: corner[0], y: corner[1] + (c === 2 ? -12 : 24), "text-anchor": "middle", style: `fill: var(--class-${c})`,
      }, svg);
      name.textContent = corners[c];
    });
    const layer = element("g", {}, svg);
    const handles = images.map((image, i) => {
      const colour = `stroke: var(--class-${image.label})`;
      if (image.anchor) {
        const [x, y] = place(image.start);
        return element("rect", { x: x - 7, y: y - 7, width: 14, height: 14, style: `fill: var(--class-${image.label})` }, svg);
      }
      const handle = element("circle", { class: "handle", r: 8, tabindex: 0, role: "slider", style: colour }, svg);
      handle.addEventListener("pointerdown", event => {
        handle.setPointerCapture(event.pointerId);
        handle.onpointermove = moved => {
          const at = new DOMPoint(moved.clientX, moved.clientY).matrixTransform(svg.getScreenCTM().inverse());
          X[i] = shares([at.x, at.y]);
          draw();
        };
      });
      handle.addEventListener("pointerup", () => { handle.onpointermove = null; });
      handle.addEventListener("keydown", event => {
        const step = { ArrowLeft: [-8, 0], ArrowRight: [8, 0], ArrowUp: [0, -8], ArrowDown: [0, 8] }[event.key];
        if (!step) return;
        event.preventDefault();
        X[i] = shares(place(X[i]).map((value, k) => value + step[k]));
        draw();
      });
      return handle;
    });

    const steps = document.createElement("div");
    steps.innerHTML = `<button type="button" data-step="-1">Back</button><button type="button" data-step="1">Step</button>
      <button type="button" data-play>Play</button><button type="button" data-reset>Reset</button>`;
    panel.append(steps);
    const time = slider(panel, "iterations T", 0, MOST, 1, () => T, value => { T = value; });
    const sliders = [];
    images.forEach((image, i) => {
      if (image.anchor) return;
      const group = document.createElement("fieldset");
      group.innerHTML = `<legend style="border-color: var(--class-${image.label})">${text(image.name)} resembles</legend>`;
      images.forEach((other, j) => {
        // A pair of images that both move is set once, W being symmetric.
        if (j === i || (!other.anchor && j < i)) return;
        sliders.push(slider(group, other.name, 0, 1, 0.01, () => W[i][j], value => { W[i][j] = W[j][i] = value; }));
      });
      panel.append(group);
    });
    const table = document.createElement("div");
    table.setAttribute("aria-live", "polite");
    panel.append(table);

    function slider(parent, name, min, max, step, get, set) {
      const label = document.createElement("label");
      label.innerHTML = `<span>${text(name)}</span><input type="range" min="${min}" max="${max}" step="${step}"><output></output>`;
      const input = label.querySelector("input");
      input.addEventListener("input", () => { set(Number(input.value)); draw(); });
      parent.append(label);
      return () => {
        input.value = get();
        label.querySelector("output").textContent = step < 1 ? get().toFixed(2) : get();
      };
    }

    function draw() {
      const path = [X];
      while (path.length <= T) path.push(replicate(W, path.at(-1)));
      const last = path.at(-1);
      layer.replaceChildren();
      images.forEach((image, i) => {
        if (image.anchor) return;
        const colour = `var(--class-${image.label})`, places = path.map(assignments => place(assignments[i]));
        element("polyline", { class: "path", points: places.join(" "), style: `stroke: ${colour}` }, layer);
        places.slice(1).forEach(([cx, cy]) => element("circle", { cx, cy, r: 2.6, style: `fill: ${colour}` }, layer));
        const [cx, cy] = places.at(-1);
        element("circle", { cx, cy, r: 6, class: "end", style: `fill: ${colour}` }, layer);
        handles[i].setAttribute("cx", places[0][0]);
        handles[i].setAttribute("cy", places[0][1]);
        const spoken = X[i].map((share, c) => `${corners[c]} ${share.toFixed(2)}`).join(", ");
        handles[i].setAttribute("aria-label", `start of ${image.name}`);
        handles[i].setAttribute("aria-valuetext", spoken);
        handles[i].setAttribute("aria-valuenow", Math.max(...X[i]).toFixed(2));
      });
      const rows = images.map((image, i) => image.anchor ? "" : `<tr><th scope="row">${text(image.name)}</th>${
        last[i].map(share => `<td>${share.toFixed(3)}</td>`).join("")}</tr>`);
      table.innerHTML = `<table><thead><tr><td>after ${T}</td>${corners.map(name => `<th scope="col">${text(name)}</th>`).join("")
        }</tr></thead><tbody>${rows.join("")}</tbody></table>average consistency ${consistency(W, X).toFixed(2)} → ${
        consistency(W, last).toFixed(2)}`;
      time();
      sliders.forEach(show => show());
    }

    function stop() {
      clearInterval(timer);
      timer = null;
      root.querySelector("[data-play]").textContent = "Play";
    }

    steps.addEventListener("click", event => {
      const { step, play, reset } = event.target.dataset;
      if (play !== undefined && timer === null) {
        if (T === MOST) T = 0;
        event.target.textContent = "Pause";
        timer = setInterval(() => { if (T < MOST) { T += 1; draw(); } else stop(); }, 350);
        return;
      }
      stop();
      if (step) T = Math.min(MOST, Math.max(0, T + Number(step)));
      if (reset !== undefined) ({ W, X, T } = structuredClone(initial));
      draw();
    });
    draw();
  }

  addEventListener("DOMContentLoaded", () => document.querySelectorAll(".interactive.simplex").forEach(mount));
}
