// What the panel draws, from the server's answer. All texts are set as text, never as html.

import {
  closeIcon,
  listIcon,
  notebookIcon,
  refreshIcon,
  stopIcon,
} from '@jupyterlab/ui-components';
import { createElement as h } from 'react';

const UNBROKEN = 24; // characters of a detail that is not broken

/** A button with an icon. `label` is its tooltip, and what a screen reader says. */
function Button({ icon, label, onClick, isBusy }) {
  return h(
    'button',
    {
      type: 'button',
      className: 'jp-Snakepit-button',
      title: label,
      'aria-label': label,
      disabled: isBusy,
      onClick,
    },
    h(icon.react, { tag: 'span', width: '14px', height: '14px' }),
  );
}

function Line({ children, actions, className = '' }) {
  return h(
    'div',
    { className: `jp-Snakepit-line ${className}` },
    children,
    h('span', { className: 'jp-Snakepit-actions' }, actions),
  );
}

/** A line of details; it breaks between them, not inside of one. */
function quiet(...texts) {
  const shown = texts
    .filter(Boolean)
    .map((text) => (text.length < UNBROKEN ? text.replaceAll(' ', '\u00a0') : text))
    .join(' · ');
  return shown ? h('div', { className: 'jp-Snakepit-quiet' }, shown) : null;
}

function counted(count, singular, plural = `${singular}s`) {
  return `${count.toLocaleString()} ${count === 1 ? singular : plural}`;
}

function duration(seconds) {
  for (const [unit, size] of [['d', 86400], ['h', 3600], ['min', 60]]) {
    if (seconds >= 2 * size) return `${Math.round(seconds / size)} ${unit}`;
  }
  return `${Math.max(0, Math.round(seconds))} s`;
}

function State({ state, text, title }) {
  return h('span', { className: 'jp-Snakepit-state', 'data-state': state, title }, text);
}

// What is said of a worker, by the headings of the status. Not every status has all of them.
const DETAILS = {
  state: (text) => text,
  since: (text) => `for ${text}`,
  for: (text) => `for ${text}`,
  session: (text) => `session ${text}`,
  calls: (text) => `calls ${text}`,
  done: (text) => `done ${text}`,
  memory: (text) => text,
  device: (text) => text,
  pid: (text) => `pid ${text}`,
};

function Worker({ pool, worker, actions, busy }) {
  const { name, cells } = worker;
  const state = worker.tainted ? 'tainted' : worker.state;
  const act = (op) => () => actions.worker(op, pool, name);
  const button = (icon, op, label) =>
    h(Button, { icon, label: `${label} ${name}`, onClick: act(op), isBusy: busy.has(`${op} ${name}`) });
  return h(
    'li',
    { 'data-worker': name },
    h(
      Line,
      {
        actions: [
          worker.running && h('span', { key: 'i' }, button(stopIcon, 'interrupt', 'Interrupt worker')),
          h('span', { key: 'r' }, button(refreshIcon, 'recycle', 'Recycle worker')),
          h('span', { key: 'k' }, button(closeIcon, 'kill', 'Kill worker')),
        ],
      },
      h(State, { state, text: name, title: worker.tainted || worker.state }),
    ),
    worker.running && h('div', { className: 'jp-Snakepit-running', title: worker.running }, worker.running),
    quiet(...Object.entries(DETAILS).map(([heading, say]) => cells[heading] && say(cells[heading]))),
  );
}

function Pool({ pool, actions, busy }) {
  return h(
    'section',
    { className: 'jp-Snakepit-pool', 'aria-label': `Pool ${pool.name}`, 'data-pool': pool.name },
    h(
      Line,
      {
        actions: h(Button, {
          icon: closeIcon,
          label: `Stop pool ${pool.name}`,
          onClick: () => actions.stopPool(pool),
          isBusy: busy.has(`stop ${pool.id}`),
        }),
      },
      h('h3', null, `Pool ${pool.name}`),
    ),
    quiet(
      pool.adapter !== 'none' && `adapter ${pool.adapter}`,
      counted(pool.workers.length, 'worker'),
      `${pool.running} running`,
      pool.queued > 0 && `${pool.queued} queued`,
      counted(pool.calls, 'call'),
      pool.failed > 0 && `${pool.failed} failed`,
    ),
    pool.problem && h('div', { className: 'jp-Snakepit-problem' }, pool.problem),
    h(
      'ul',
      { 'aria-label': `Workers of pool ${pool.name}` },
      pool.workers.map((worker) => h(Worker, { key: worker.name, pool, worker, actions, busy })),
    ),
    pool.sessions.length > 0 &&
      quiet(`Sessions: ${pool.sessions.join(', ')}`, pool.shells > 0 && counted(pool.shells, 'shell')),
  );
}

function Job({ job, actions, busy }) {
  const key = `cancel ${job.pool} ${job.number}`;
  return h(
    'li',
    { 'data-job': job.number },
    h(
      Line,
      {
        actions: h(Button, {
          icon: stopIcon,
          label: `Cancel job ${job.number}`,
          onClick: () => actions.cancelJob(job, key),
          isBusy: busy.has(key),
        }),
      },
      h(State, { state: 'busy', text: `Job ${job.number}` }),
    ),
    h('div', { className: 'jp-Snakepit-running', title: job.title }, job.title),
    quiet(`for ${duration(Date.now() / 1000 - job.started)}`),
  );
}

const PROCESS_STATES = { running: 'busy', exited: 'ready', failed: 'dead', killed: 'dead' };

function Process({ process, actions, busy }) {
  const { id, name, status } = process;
  const until = process.ended ?? Date.now() / 1000;
  return h(
    'li',
    { 'data-process': name },
    h(
      Line,
      {
        actions: [
          h(Button, {
            key: 'log',
            icon: listIcon,
            label: `Open the log of process ${name}`,
            onClick: () => actions.openLog(process),
          }),
          status === 'running' &&
            h(Button, {
              key: 'kill',
              icon: closeIcon,
              label: `Kill process ${name}`,
              onClick: () => actions.killProcess(process),
              isBusy: busy.has(`kill ${id}`),
            }),
        ],
      },
      h(State, { state: PROCESS_STATES[status], text: name, title: status }),
    ),
    h('div', { className: 'jp-Snakepit-running', title: process.command }, process.command),
    quiet(
      status === 'running' || process.returncode === null ? status : `${status} ${process.returncode}`,
      `for ${duration(until - process.started)}`,
      `session ${process.session}`,
      `pid ${process.pid}`,
    ),
  );
}

function Group({ title, kernel, children }) {
  if (children.length === 0) return null;
  return h(
    'section',
    { 'aria-label': `${title} of ${kernel.name}` },
    h('h3', null, title),
    h('ul', { 'aria-label': `${title} of ${kernel.name}` }, children),
  );
}

function Kernel({ kernel, actions, busy }) {
  const { id, name, path } = kernel;
  return h(
    'section',
    { className: 'jp-Snakepit-kernel', 'aria-label': `Kernel of ${name}`, 'data-kernel': name },
    h(
      Line,
      {
        actions: [
          path !== null &&
            h(Button, {
              key: 'open',
              icon: notebookIcon,
              label: `Open ${name}`,
              onClick: () => actions.openNotebook(path),
            }),
          h(Button, {
            key: 'interrupt',
            icon: stopIcon,
            label: `Interrupt the kernel of ${name}`,
            onClick: () => actions.interruptKernel(kernel),
            isBusy: busy.has(`interrupt ${id}`),
          }),
        ],
      },
      h('h2', { title: path ?? name }, name),
      h('span', { className: 'jp-Snakepit-quiet' }, kernel.state),
    ),
    kernel.pools.map((pool) => h(Pool, { key: pool.id, pool, actions, busy })),
    h(
      Group,
      { title: 'Jobs', kernel },
      kernel.jobs.map((job) => h(Job, { key: `${job.pool} ${job.number}`, job, actions, busy })),
    ),
    h(
      Group,
      { title: 'Processes', kernel },
      kernel.processes.map((process) => h(Process, { key: process.id, process, actions, busy })),
    ),
  );
}

function Empty() {
  return h(
    'p',
    { className: 'jp-Snakepit-empty' },
    'No notebook of this server has a pool. Run ',
    h('code', null, '%snakepit start'),
    ' in a notebook with the kernel Python 3 (Snakepit) to open one.',
  );
}

/**
 * The whole panel.
 *
 * `state` is the last answer of the server, or null before the first; `problem` is what has gone
 * wrong last, `busy` holds what is being done.
 */
export function View({ state, problem, busy, actions }) {
  const problems = [...(problem ? [problem] : []), ...(state?.problems ?? [])];
  return h(
    'div',
    { className: 'jp-Snakepit-content' },
    h(
      'div',
      { role: 'alert' },
      problems.map((text) =>
        h(
          'div',
          { key: text, className: 'jp-Snakepit-problem' },
          text,
          text === problem &&
            h(Button, { icon: closeIcon, label: 'Dismiss this message', onClick: actions.dismiss }),
        ),
      ),
    ),
    state !== null && state.kernels.length === 0 && h(Empty),
    state?.kernels.map((kernel) => h(Kernel, { key: kernel.id, kernel, actions, busy })),
  );
}
