// A film of an embedding: maps of one set of images over time, moved through by a slider or played.
{
  const SIZE = 440, MARGIN = 16, SIDE = 20, FRAMES_A_SECOND = 2.5;

  const text = value => String(value).replace(/[&<>"]/g, sign => `&#${sign.charCodeAt(0)};`);

  function mount(root) {
    const { maps, titles, labels, names, sprite, tile, columns } = JSON.parse(root.dataset.film);
    const still = root.querySelector("img.still");
    const last = maps.length - 1;
    let time = last, playing = null;

    root.innerHTML = `<div class="stage"><canvas role="img" aria-label="${text(still.alt)}"></canvas><div class="panel">
      <p><button type="button" class="play"></button></p>
      <label>time<input type="range" min="0" max="${last}" step="1" value="${last}"><span></span></label>
      <p><output></output></p><label>class<select><option value="">all</option></select></label></div></div>`;
    const canvas = root.querySelector("canvas"), pen = canvas.getContext("2d");
    const [button, slider, output, select] = [".play", "input", "output", "select"].map(name => root.querySelector(name));
    [...new Set(labels)].sort((a, b) => a - b).forEach(label => select.add(new Option(names[label], label)));

    // One scale for all frames: what moves is the map and not the view.
    const values = k => maps.flatMap(points => points.map(point => point[k]));
    const [left, bottom] = [0, 1].map(k => Math.min(...values(k)));
    const scale = (SIZE - 2 * MARGIN) / Math.max(Math.max(...values(0)) - left, Math.max(...values(1)) - bottom, 1e-9);
    const sheet = sprite && Object.assign(new Image(), { src: sprite });
    const sharp = Math.max(1, window.devicePixelRatio || 1);
    canvas.width = canvas.height = SIZE * sharp;
    pen.scale(sharp, sharp);

    function draw() {
      const before = Math.floor(time), after = Math.min(before + 1, last), way = time - before;
      pen.clearRect(0, 0, SIZE, SIZE);
      labels.forEach((label, i) => {
        const [x, y] = [0, 1].map(k => (1 - way) * maps[before][i][k] + way * maps[after][i][k]);
        const [across, down] = [MARGIN + (x - left) * scale, SIZE - MARGIN - (y - bottom) * scale];
        pen.globalAlpha = select.value === "" || Number(select.value) === label ? 1 : 0.12;
        // Golden angles keep the hues of neighbouring class numbers far apart.
        pen.fillStyle = `hsl(${(label * 137.5) % 360} 62% ${45 + 12 * (label % 3)}%)`;
        if (!sheet) {
          pen.beginPath();
          pen.arc(across, down, 5, 0, 2 * Math.PI);
          pen.fill();
          return;
        }
        const side = SIDE - 4;
        pen.fillRect(across - SIDE / 2, down - SIDE / 2, SIDE, SIDE);
        pen.drawImage(sheet, (i % columns) * tile, Math.floor(i / columns) * tile, tile, tile, across - side / 2, down - side / 2, side, side);
      });
      const nearest = Math.round(time);
      slider.value = nearest;
      slider.setAttribute("aria-valuetext", titles[nearest]);
      output.textContent = titles[nearest];
      button.textContent = playing ? "pause" : "play";
    }

    function stop() {
      cancelAnimationFrame(playing);
      playing = null;
      draw();
    }

    function play() {
      if (time >= last) time = 0;
      let shown;
      const step = now => {
        time = Math.min(last, time + (shown === undefined ? 0 : (now - shown) / 1000 * FRAMES_A_SECOND));
        shown = now;
        if (time >= last) return stop();
        playing = requestAnimationFrame(step);
        draw();
      };
      playing = requestAnimationFrame(step);
      draw();
    }

    button.addEventListener("click", () => playing ? stop() : play());
    slider.addEventListener("input", () => { time = Number(slider.value); stop(); });
    select.addEventListener("change", draw);
    if (sheet) sheet.addEventListener("load", draw);
    draw();
  }

  addEventListener("DOMContentLoaded", () => document.querySelectorAll(".interactive.film").forEach(mount));
}
