// Asks the server for the answer to one photo or example, through the HTTP routes of Gradio's queue:
//   POST upload        the photo, with the share that has been sent
//   POST queue/join    the choice; Gradio puts it into its queue
//   GET  queue/data    a stream of events: the place in the queue, the start, the answer
// Every choice has its own session. Closing the stream cancels the choice. When the connection is lost, the page waits
// until the server answers again, and sends the whole choice again, because a restarted server has forgotten it.

class LostConnection extends Error {}
class ServerTrouble extends Error {}
class BusyServer extends Error {}
class Refusal extends Error {} // its message is for the visitor

const SILENCE = 45000; // ms without any event; Gradio sends a heartbeat every 15 s
const STALLED = 60000; // ms without progress of an upload
const FIRST_PAUSE = 2000, LONGEST_PAUSE = 30000; // ms before the next attempt; each is 1.5 times as long as the one before

const address = (name, values = {}) => {
  const url = new URL(name, location.origin + location.pathname.replace(/\/?$/, '/'));
  const sign = new URLSearchParams(location.search).get('__sign'); // the hub's key to a private Space
  for (const [key, value] of Object.entries(sign ? { ...values, __sign: sign } : values)) url.searchParams.set(key, value);
  return url;
};

// Settles as `work` does, or fails as soon as `signal` is aborted.
const untilAborted = (work, signal) => new Promise((resolve, reject) => {
  signal.throwIfAborted();
  signal.addEventListener('abort', () => reject(signal.reason), { once: true });
  work.then(resolve, reject);
});

// Waits; a browser that is online again ends the pause.
const pause = (milliseconds, signal) => {
  const ended = new AbortController();
  const waiting = new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    addEventListener('online', resolve, { signal: ended.signal });
    ended.signal.addEventListener('abort', () => clearTimeout(timer));
  });
  return untilAborted(waiting, signal).finally(() => ended.abort());
};

const request = async (name, signal, options = {}) => {
  try {
    return await fetch(address(name), { cache: 'no-store', signal, ...options });
  } catch (error) {
    signal.throwIfAborted();
    throw new LostConnection();
  }
};

// A login page or a page of the network in between answers with HTML where JSON is expected.
const parse = (text) => {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new LostConnection();
  }
};

const readUpload = (sending) => {
  if (sending.status === 200) return parse(sending.responseText)[0];
  if (sending.status === 413) throw new Refusal('The server does not accept a file of this size. Choose a smaller photo.');
  if (sending.status === 404 || sending.status === 502 || sending.status === 503) throw new LostConnection();
  if (sending.status >= 500) throw new ServerTrouble();
  throw new Refusal(`The server did not accept this file (error ${sending.status}). Choose another photo.`);
};

const uploadPhoto = async (file, name, signal, setState) => {
  const sending = new XMLHttpRequest(), form = new FormData();
  let timer;
  const uploading = new Promise((resolve, reject) => {
    const watch = () => { clearTimeout(timer); timer = setTimeout(() => reject(new LostConnection()), STALLED); };
    form.append('files', file, name);
    sending.open('POST', address('gradio_api/upload'));
    sending.upload.addEventListener('progress', ({ loaded, total }) => { watch(); setState('sending', loaded / total); });
    sending.addEventListener('error', () => reject(new LostConnection()));
    sending.addEventListener('load', () => resolve(sending));
    watch();
    sending.send(form);
  });
  try {
    return readUpload(await untilAborted(uploading, signal));
  } finally {
    clearTimeout(timer);
    sending.abort(); // without effect if it is complete
  }
};

// The event of the page in Gradio's configuration, which came with the page; a restarted server may have another one.
let configuration = window.gradio_config;
const findEvent = async (signal) => {
  if (!configuration) {
    const found = await request('config', signal);
    if (!found.ok) throw new LostConnection();
    configuration = parse(await found.text());
  }
  const event = (configuration.dependencies ?? []).find((each) => each.targets.length);
  if (!event) throw new LostConnection();
  return event;
};

const joinQueue = async (choice, session, signal) => {
  const event = await findEvent(signal);
  const body = JSON.stringify({ data: [], event_data: choice, fn_index: event.id, session_hash: session, trigger_id: event.targets[0][0] });
  const joined = await request('gradio_api/queue/join', signal, { method: 'POST', headers: { 'Content-Type': 'application/json' }, body });
  const text = await joined.text();
  if (joined.ok) return parse(text);
  throw joined.status === 503 && text.includes('Queue is full') ? new BusyServer() : new LostConnection();
};

const listenForAnswer = async (session, signal, setState) => {
  const stream = new EventSource(address('gradio_api/queue/data', { session_hash: session }));
  let timer;
  const listening = new Promise((resolve, reject) => {
    const watch = () => { clearTimeout(timer); timer = setTimeout(() => reject(new LostConnection()), SILENCE); };
    stream.addEventListener('error', () => reject(new LostConnection()));
    stream.addEventListener('message', ({ data }) => {
      watch();
      let message;
      try {
        message = JSON.parse(data);
      } catch (error) {
        return reject(new LostConnection());
      }
      if (message.msg === 'estimation') setState('waiting', message.rank + 1);
      if (message.msg === 'process_starts') setState('looking');
      if (message.msg === 'unexpected_error') reject(new LostConnection());
      if (message.msg === 'process_completed') {
        if (message.success) resolve(message.output.data[0]);
        else reject(new Refusal('The server could not process this photo. Try another one.'));
      }
    });
    watch();
  });
  try {
    return await untilAborted(listening, signal);
  } finally {
    clearTimeout(timer);
    stream.close();
  }
};

// Waits until the server answers; a server that is busy or in trouble is asked again after a pause.
const waitForServer = async (error, attempt, signal) => {
  await pause(Math.min(LONGEST_PAUSE, FIRST_PAUSE * 1.5 ** attempt), signal);
  if (!(error instanceof LostConnection)) return;
  for (let isBack = false; !isBack;) {
    isBack = await request('gradio_api/app_id', signal).then((found) => found.ok, () => { signal.throwIfAborted(); return false; });
    if (!isBack) await pause(FIRST_PAUSE, signal);
  }
};

// Returns the answer as HTML. `choice` is { example: NUMBER } or { file, name }; `setState(state, value)` is called when
// the state changes: sending (share), waiting (photos ahead), looking, busy, trouble, lost.
const requestAnswer = async (choice, signal, setState) => {
  let uploaded = null; // the server's path of the photo
  for (let attempt = 0; ; attempt += 1) {
    signal.throwIfAborted();
    try {
      const session = Math.random().toString(36).slice(2) + Math.random().toString(36).slice(2);
      if (choice.file && !uploaded) uploaded = await uploadPhoto(choice.file, choice.name, signal, setState);
      await joinQueue(choice.file ? { upload: uploaded } : choice, session, signal);
      return await listenForAnswer(session, signal, setState);
    } catch (error) {
      signal.throwIfAborted();
      const state = error instanceof BusyServer ? 'busy' : error instanceof ServerTrouble ? 'trouble' : 'lost';
      if (state === 'lost' && !(error instanceof LostConnection)) throw error;
      setState(state);
      if (state === 'lost') configuration = uploaded = null;
      await waitForServer(error, attempt, signal);
    }
  }
};
