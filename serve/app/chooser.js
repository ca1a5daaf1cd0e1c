// Sends the chosen picture: a file that was picked, dropped or pasted, or the number of an example.
// Gradio runs this as the body of a function in which `element`, `upload` and `trigger` are defined; serve/app/server.py
// defines MAX_UPLOAD, in bytes, in front of it.

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
