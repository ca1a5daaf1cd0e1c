// Handles a choice from the input event to the answer. A choice is a photo that was picked, taken, dropped or pasted, or
// an example. Each choice aborts the one before it, so the last one wins. Gradio runs this, after the other scripts, as
// the body of a function in which `element` is defined; serve/app/page.py defines the constants in front of them.

const STATES = {
  preparing: () => 'Preparing the photo…',
  sending: (share) => share < 1 ? `Sending… ${Math.floor(100 * share)}%` : 'Sent. Waiting for the server…',
  waiting: (others) => others === 1 ? 'One photo is ahead of yours…' : `${others} photos are ahead of yours…`,
  looking: () => 'Looking…',
  busy: () => 'The server is busy. Trying again in a few seconds…',
  trouble: () => 'The server has a problem. Trying again…',
  lost: () => 'The connection was lost. Trying again…',
};
const CALM = 400; // ms before a place in the queue is shown: most answers start at once

const findInChooser = (selector) => element.querySelector(selector);
const showError = (words) => { findInChooser('.trouble').textContent = words; findInChooser('.trouble').hidden = !words; };
const announce = (words) => { if (findInChooser('.spoken').textContent !== words) findInChooser('.spoken').textContent = words; };
const markExample = (number) => element.querySelectorAll('[data-example]').forEach((button) =>
  button.setAttribute('aria-pressed', String(Number(button.dataset.example) === number)));

let current = null; // the AbortController of the choice that is under way
let latest = { html: '', example: null }; // the answer that Cancel shows again

// Aborts the choice that is under way, and returns the AbortController of a new one.
const begin = () => {
  if (current) current.abort();
  current = new AbortController();
  showError('');
  return current;
};

const cancel = () => {
  if (!current) return;
  current.abort();
  announce('Cancelled.');
};

// Tells the visitor of an error that is not the end of an aborted choice.
const reportFault = (error, signal) => {
  if (error instanceof Refusal) showError(error.message);
  else if (!signal.aborted) {
    showError('Something went wrong in this page. Reload it.');
    console.error(error);
  }
};

// Shows the photo at once, with the state of its choice. Returns the function that changes the state.
const showWaiting = (uri, isSmall, signal) => {
  answerBox().innerHTML = findInChooser('.waiting').innerHTML;
  answerBox().setAttribute('aria-busy', 'true');
  findInAnswer('.view').src = uri;
  findInAnswer('.view').classList.toggle('pixels', isSmall);
  const bar = findInAnswer('progress'), words = findInAnswer('.state');
  let timer;
  return (state, value) => {
    clearTimeout(timer);
    const isPart = state === 'sending' && value < 1;
    const show = () => {
      if (signal.aborted || !bar.isConnected) return; // another answer is shown
      words.textContent = STATES[state](value);
      announce(isPart ? 'Sending…' : words.textContent);
      if (isPart) bar.value = value;
      else bar.removeAttribute('value');
    };
    if (state === 'waiting') timer = setTimeout(show, CALM);
    else show();
  };
};

// Returns the answer to one choice as HTML; a photo is made smaller before.
const sendChoice = async (choice, signal, setState) => {
  if (!choice.file) return requestAnswer(choice, signal, setState);
  setState('preparing');
  const file = await untilAborted(shrinkPhoto(choice.file).catch(() => choice.file), signal);
  if (file.size > MAX_UPLOAD) {
    const [size, most] = [Math.ceil(file.size / 1048576), MAX_UPLOAD / 1048576];
    throw new Refusal(isPhoto(file)
      ? `${choice.name} has ${size} MB and this browser cannot make it smaller. At most ${most} MB are accepted.`
      : `${choice.name} is not a photo. Choose a JPEG or a PNG.`);
  }

  // Read the file once: a folder, or a file that was moved or changed meanwhile, would look like a lost connection.
  const bytes = await file.arrayBuffer().catch(() => {
    throw new Refusal(`${choice.name} cannot be read. It may be a folder, or it was moved or changed. Choose it again.`);
  });
  return requestAnswer({ ...choice, file: new Blob([bytes], { type: file.type }) }, signal, setState);
};

const choose = async (choice, uri, isSmall) => {
  const own = begin();
  markExample(choice.example);
  try {
    const answering = sendChoice(choice, own.signal, showWaiting(uri, isSmall, own.signal));
    scrollToAnswer();
    const html = await answering;
    if (own !== current) return;
    latest = { html, example: choice.example };
    putAnswer(latest);
    if (findInAnswer('.said')) announce(findInAnswer('.said').textContent); // a refusal is an alert, which is spoken
    scrollToAnswer();
  } catch (error) {
    if (own !== current) return;
    putAnswer(latest);
    if (document.activeElement === document.body) findInChooser('.file').focus({ preventScroll: true }); // Cancel is gone
    reportFault(error, own.signal);
  } finally {
    if (own === current) current = null;
    if (choice.file) URL.revokeObjectURL(uri);
  }
};

const choosePhoto = (file) => choose({ file, name: file.name, example: null }, URL.createObjectURL(file), false);
const chooseFiles = (files) => {
  if (files.length === 1) choosePhoto(files[0]);
  if (files.length > 1) chooseSeveral([...files]);
};

element.addEventListener('change', (event) => {
  if (!event.target.matches('input[type=file]')) return;
  chooseFiles([...event.target.files]);
  event.target.value = '';
});
element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-example]');
  if (button) choose({ example: Number(button.dataset.example) }, button.querySelector('img').src, button.dataset.small === 'yes');
});

// Drops and pastes on the whole page.
const markDropTarget = (event, isOn) => { event.preventDefault(); findInChooser('.drop').classList.toggle('over', isOn); };
const takeTransfer = (transfer) => {
  const files = [...(transfer ? transfer.files : [])];
  if (files.length) return chooseFiles(files);
  if (transfer && transfer.types.length) {
    showError('That was text or a link, not a photo. Save the photo on this device first, then choose the file.');
  }
};
document.addEventListener('dragover', (event) => markDropTarget(event, true));
document.addEventListener('dragleave', (event) => { if (!event.relatedTarget) markDropTarget(event, false); });
document.addEventListener('drop', (event) => { markDropTarget(event, false); takeTransfer(event.dataTransfer); });
document.addEventListener('paste', (event) => takeTransfer(event.clipboardData));

// The answer's own controls.
document.addEventListener('input', (event) => {
  if (event.target.matches('#shown .slider input')) {
    findInAnswer('.answer').style.setProperty('--opacity', event.target.value / 100);
    findInAnswer('.percent').textContent = `${event.target.value}%`;
    findInAnswer('.layers').classList.toggle('plain', event.target.value === '0');
  }
  if (event.target.matches('#shown .choice input')) showClass();
});
document.addEventListener('click', (event) => {
  const isOn = (selector) => event.target.closest(`#shown ${selector}`);
  if (isOn('.cancel')) cancel();
  if (isOn('.save')) paintAnswer().then((content) => saveFile(content, 'penstock.png'));
  if (isOn('.share-picture')) shareAnswer();
  if (isOn('.compare') && event.detail === 0) compare(!findInAnswer('.layers').classList.contains('comparing')); // a key
});
document.addEventListener('pointerdown', (event) => {
  if (event.button === 0 && event.target.closest('#shown .compare, #shown .layers')) compare(true);
});
for (const end of ['pointerup', 'pointercancel', 'contextmenu']) document.addEventListener(end, () => compare(false));
addEventListener('blur', () => compare(false));

// Start with the last answer of this tab; otherwise with the first example's, which came with the page.
const start = () => {
  if (!answerBox()) return requestAnimationFrame(start);
  latest = recallAnswer() ?? { html: answerBox().innerHTML, example: 0 };
  putAnswer(latest);
};
start();
