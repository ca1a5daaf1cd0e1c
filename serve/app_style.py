"""How the app's page looks, and the little that it does by itself. For `serve/app.py`."""

SCRIPT_OF_CHOOSER = """
const find = (selector) => element.querySelector(selector);
const complain = (words) => { const place = find('.trouble'); place.textContent = words; place.hidden = !words; };
const send = async (file) => {
  complain('');
  if (file.size > MAX_UPLOAD) {
    const [size, most] = [Math.ceil(file.size / 1048576), MAX_UPLOAD / 1048576];
    complain(`${file.name} has ${size} MB, and a file may have ${most} MB at most.`);
    return;
  }
  element.classList.add('sending');
  try {
    const { path } = await upload(file);
    trigger('submit', { upload: path });
  } catch (error) {
    complain('The picture did not arrive. Try again.');
  } finally {
    element.classList.remove('sending');
  }
};
element.addEventListener('change', (event) => {
  if (event.target.matches('.file') && event.target.files.length) send(event.target.files[0]);
  event.target.value = '';
});
element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-example]');
  if (button) { complain(''); trigger('submit', { example: Number(button.dataset.example) }); }
});
const hover = (event, on) => { event.preventDefault(); find('.drop').classList.toggle('over', on); };
document.addEventListener('dragover', (event) => hover(event, true));
document.addEventListener('dragleave', (event) => { if (!event.relatedTarget) hover(event, false); });
document.addEventListener('drop', (event) => {
  hover(event, false);
  if (event.dataTransfer.files.length) send(event.dataTransfer.files[0]);
});
document.addEventListener('paste', (event) => {
  const files = event.clipboardData ? event.clipboardData.files : [];
  if (files.length) send(files[0]);
});
"""

SCRIPT_OF_ANSWER = """
watch('value', () => {
  const { top, bottom } = element.getBoundingClientRect();
  if (top > window.innerHeight - 200 || bottom < 200) element.scrollIntoView({ block: 'start' });
});
element.addEventListener('input', (event) => {
  if (!event.target.matches('input[type=range]')) return;
  element.querySelector('.answer').style.setProperty('--opacity', event.target.value / 100);
  element.querySelector('.percent').textContent = event.target.value + '%';
});
"""

STYLE = """
:root, .gradio-container {
  --paper: #f7f6f3; --card: #ffffff; --ink: #1d2327; --quiet: #5d666d; --line: #dedbd3; --soft: #eceae4;
  --accent: #0b6e6e; --accent-soft: #dcefed; --alarm: #a3241d; --alarm-soft: #fbe9e7; --focus: #0b6e6e;
}
.dark, .dark .gradio-container {
  --paper: #14181a; --card: #1c2225; --ink: #e8e6e1; --quiet: #a2abb0; --line: #333b3f; --soft: #2a3135;
  --accent: #4fc3b8; --accent-soft: #17393a; --alarm: #ff9b90; --alarm-soft: #3b1f1d; --focus: #7fe0d6;
}
body, gradio-app, .gradio-container { background: var(--paper) !important; color: var(--ink) }
.gradio-container { font: 16px/1.5 system-ui, sans-serif }
.gradio-container .main.app {
  width: 100%; max-width: 1152px !important; margin: 0 auto !important; padding: 32px 20px 48px !important;
}
@media (max-width: 640px) { .gradio-container .main.app { padding: 20px 14px 32px !important } }
.gradio-container .html-container { padding: 0 }
#head, #chooser, #shown { color: var(--ink); min-width: 0 }
#head h1 {
  font-size: clamp(1.5rem, 1.1rem + 1.8vw, 2.1rem); line-height: 1.2; font-weight: 650; margin: 0 0 .4rem;
  letter-spacing: -.015em;
}
#head p { margin: 0; color: var(--quiet); max-width: 46rem; overflow-wrap: anywhere }
#columns {
  display: grid; grid-template-columns: minmax(0, 19rem) minmax(0, 1fr); gap: 28px; align-items: start;
  margin-top: 8px;
}
#columns > * { min-width: 0 !important; width: 100% }
@media (max-width: 860px) { #columns { grid-template-columns: minmax(0, 1fr); gap: 20px } }

.drop {
  display: grid; place-items: center; min-height: 11rem; padding: 1rem; text-align: center; cursor: pointer;
  border: 2px dashed var(--line); border-radius: 16px; background: var(--card);
  transition: border-color .15s, background .15s;
}
@media (max-width: 860px) { .drop { min-height: 7rem } }
.drop:hover, .drop.over { border-color: var(--accent); background: var(--accent-soft) }
.drop-words { display: grid; gap: .15rem; color: var(--quiet) }
.drop-words strong { color: var(--ink); font-weight: 600 }
.drop-words u { color: var(--accent); text-underline-offset: 3px }
.sending .drop { cursor: progress; opacity: .6 }
.file, .choice input { position: absolute; opacity: 0; width: 1px; height: 1px; pointer-events: none }
.drop:focus-within, .choice:focus-within, .examples button:focus-visible, .slider input:focus-visible {
  outline: 3px solid var(--focus); outline-offset: 2px;
}
.choice:focus-within:not(:has(:focus-visible)), .drop:focus-within:not(:has(:focus-visible)) { outline: none }
.small { font-size: .86rem; color: var(--quiet); margin: .7rem 0 0 }
.trouble, .refusal, .note { margin: .8rem 0 0; padding: .7rem .9rem; border-radius: 10px; overflow-wrap: anywhere }
.trouble, .refusal { background: var(--alarm-soft); color: var(--alarm); font-weight: 500 }
.note { background: var(--soft) }
#chooser h2 { font-size: .95rem; font-weight: 600; margin: 1.3rem 0 .6rem }
.examples { display: grid; grid-template-columns: repeat(auto-fill, minmax(3.7rem, 1fr)); gap: .6rem }
.examples button {
  display: grid; gap: .3rem; padding: 0; border: 0; border-radius: 10px; background: none; color: var(--quiet);
  font: inherit; font-size: .8rem; line-height: 1.25; cursor: pointer; align-content: start; overflow-wrap: anywhere;
}
.examples img {
  width: 100%; aspect-ratio: 1; object-fit: cover; border: 1px solid var(--line);
  border-radius: 10px; margin: 0;
}
.examples button:hover { color: var(--ink) }
.examples button:hover img { border-color: var(--accent) }

.answer { background: var(--card); border: 1px solid var(--line); border-radius: 16px; padding: 18px }
.answer.empty { display: grid; place-items: center; min-height: 22rem; color: var(--quiet); text-align: center }
.answer.empty p { max-width: 22rem; margin: 0 }
@media (max-width: 860px) { .answer.empty { min-height: 7rem } .answer { padding: 14px } }
.answer > .refusal:first-child { margin: 0 }
.said { margin: 0; font-size: 1.15rem; font-weight: 600; overflow-wrap: anywhere }
.beside {
  display: grid; grid-template-columns: minmax(0, 1.15fr) minmax(0, 1fr); gap: 22px; margin-top: 14px;
  align-items: start;
}
@media (max-width: 640px) { .beside { grid-template-columns: minmax(0, 1fr); gap: 16px } }
.layers { position: relative; aspect-ratio: 1; border-radius: 12px; overflow: hidden; background: var(--soft) }
.layers img { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; border-radius: 0 }
.layers .pixels { image-rendering: pixelated }
.layers .map { opacity: 0; transition: opacity .12s; pointer-events: none }
@media (prefers-reduced-motion: reduce) { .layers .map, .drop { transition: none } }
.answer:has([value='0']:checked) .map-0 { opacity: var(--opacity) }
.answer:has([value='1']:checked) .map-1 { opacity: var(--opacity) }
.answer:has([value='2']:checked) .map-2 { opacity: var(--opacity) }
.answer:has([value='3']:checked) .map-3 { opacity: var(--opacity) }
.answer:has([value='4']:checked) .map-4 { opacity: var(--opacity) }
.slider { display: flex; align-items: center; gap: .7rem; margin-top: .8rem; font-size: .9rem; color: var(--quiet) }
.slider input { flex: 1; min-width: 0; accent-color: var(--accent); height: 1.6rem; border-radius: 8px }
.slider output { min-width: 3rem; text-align: right; font-variant-numeric: tabular-nums }
.choices { border: 0; padding: 0; margin: 0; min-width: 0; display: grid; gap: .35rem }
.choices legend { padding: 0; margin-bottom: .5rem; font-size: .9rem; color: var(--quiet) }
.choice {
  position: relative; display: grid; grid-template-columns: minmax(0, 1fr) auto; gap: .3rem .8rem;
  padding: .55rem .7rem .65rem;
  border: 1px solid transparent; border-radius: 10px; cursor: pointer;
}
.choice:hover { background: var(--soft) }
.choice:has(:checked) { background: var(--accent-soft); border-color: var(--accent) }
.choice .name { overflow-wrap: anywhere; line-height: 1.3 }
.choice .share { font-variant-numeric: tabular-nums; color: var(--quiet) }
.choice:has(:checked) .name { font-weight: 600 }
.choice:has(:checked) .share { color: var(--ink) }
.bar { grid-column: 1 / -1; height: 6px; border-radius: 3px; background: var(--soft); overflow: hidden }
.choice:hover .bar, .choice:has(:checked) .bar { background: var(--line) }
.bar span { display: block; height: 100%; min-width: 2px; border-radius: 3px; background: var(--accent) }
.latency { white-space: nowrap; font-variant-numeric: tabular-nums }
footer { display: none !important }
"""
