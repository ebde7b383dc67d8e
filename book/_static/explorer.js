// A map of an embedding: pointing at an image shows it, and its nearest neighbours in the embedding itself.
{
  const SIZE = 440, MARGIN = 10;
  const SVG = "http://www.w3.org/2000/svg";

  const text = value => String(value).replace(/[&<>"]/g, sign => `&#${sign.charCodeAt(0)};`);

  function mount(root) {
    const { maps, labels, names, sprite, tile, columns } = JSON.parse(root.dataset.explorer);
    const still = root.querySelector("img.still");
    const states = Object.keys(maps);
    let state = states.at(-1), chosen = 0;

    root.innerHTML = `<div class="stage"><svg viewBox="0 0 ${SIZE} ${SIZE}" role="group" tabindex="0"
      aria-label="${text(still.alt)} Arrow keys go from image to image."></svg><div class="panel">
      <div class="states"></div><label>class<select><option value="">all</option></select></label>
      <div class="shown" aria-live="polite"></div></div></div>`;
    const svg = root.querySelector("svg"), select = root.querySelector("select"), shown = root.querySelector(".shown");
    const ties = svg.appendChild(document.createElementNS(SVG, "g"));
    const circles = labels.map((label, i) => {
      const circle = svg.appendChild(document.createElementNS(SVG, "circle"));
      circle.setAttribute("class", "point");
      circle.setAttribute("r", 5);
      // Golden angles keep the hues of neighbouring class numbers far apart.
      circle.style.fill = `hsl(${(label * 137.5) % 360} 62% ${45 + 12 * (label % 3)}%)`;
      circle.addEventListener("pointerenter", () => choose(i));
      circle.addEventListener("click", () => choose(i));
      return circle;
    });
    for (const label of [...new Set(labels)].sort((a, b) => a - b)) select.add(new Option(names[label], label));
    const buttons = states.length < 2 ? [] : states.map(name => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = name;
      button.addEventListener("click", () => { state = name; arrange(); choose(chosen); });
      root.querySelector(".states").append(button);
      return button;
    });

    const at = i => [Number(circles[i].getAttribute("cx")), Number(circles[i].getAttribute("cy"))];

    function arrange() {
      const { points } = maps[state];
      const range = k => {
        const values = points.map(point => point[k]), least = Math.min(...values);
        return [least, Math.max(...values) - least || 1];
      };
      const [left, width] = range(0), [bottom, height] = range(1);
      const scale = (SIZE - 2 * MARGIN) / Math.max(width, height);
      points.forEach(([x, y], i) => {
        circles[i].setAttribute("cx", MARGIN + (x - left) * scale);
        circles[i].setAttribute("cy", SIZE - MARGIN - (y - bottom) * scale);
      });
      buttons.forEach(button => button.setAttribute("aria-pressed", button.textContent === state));
    }

    function thumb(i, kind, zoom) {
      const side = tile * zoom, name = text(names[labels[i]]);
      return `<span class="thumb ${kind}" role="img" aria-label="${name}${kind && `, ${kind}`}" title="${name}" style="
        width: ${side}px; height: ${side}px; background-image: url(${sprite}); background-size: ${columns * side}px auto;
        background-position: -${(i % columns) * side}px -${Math.floor(i / columns) * side}px"></span>`;
    }

    function choose(i) {
      circles[chosen].classList.remove("chosen");
      chosen = i;
      circles[i].classList.add("chosen");
      const near = maps[state].neighbours[i], right = near.filter(j => labels[j] === labels[i]).length;
      ties.replaceChildren(...near.map(j => {
        const line = document.createElementNS(SVG, "line"), [x1, y1] = at(i), [x2, y2] = at(j);
        Object.entries({ x1, y1, x2, y2, class: "tie" }).forEach(([key, value]) => line.setAttribute(key, value));
        line.style.stroke = `var(--${labels[j] === labels[i] ? "right" : "wrong"})`;
        return line;
      }));
      shown.innerHTML = `<p>${thumb(i, "", 2)}<br><strong>${text(names[labels[i]])}</strong></p><p>Nearest in the embedding, ${right} of ${
        near.length} of its class:</p><div>${near.map(j => thumb(j, labels[j] === labels[i] ? "right" : "wrong", 1)).join("")}</div>`;
    }

    select.addEventListener("change", () => circles.forEach((circle, i) =>
      circle.classList.toggle("apart", select.value !== "" && Number(select.value) !== labels[i])));
    svg.addEventListener("keydown", event => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      choose((chosen + step + labels.length) % labels.length);
    });
    arrange();
    choose(0);
  }

  addEventListener("DOMContentLoaded", () => document.querySelectorAll(".interactive.explorer").forEach(mount));
}
