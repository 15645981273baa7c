// The sidebar: asks the server while it is on the screen, and does what its buttons say.

import { Dialog, showDialog } from '@jupyterlab/apputils';
import { ReactWidget, UseSignal } from '@jupyterlab/ui-components';
import { Poll } from '@lumino/polling';
import { Signal } from '@lumino/signaling';
import { createElement as h } from 'react';

import { View } from './view';

const INTERVAL = 2000; // milliseconds

/** Ask whether something is to be ended; what it holds in memory is lost with it. */
async function isConfirmed(title, body, label) {
  const buttons = [Dialog.cancelButton(), Dialog.warnButton({ label })];
  return (await showDialog({ title, body, buttons })).button.accept;
}

export class Panel extends ReactWidget {
  /** `openNotebook(path)` and `openLog(process)` show something in the main area. */
  constructor(requests, { openNotebook, openLog }) {
    super();
    this.addClass('jp-Snakepit');
    this.node.setAttribute('role', 'region');
    this.node.setAttribute('aria-label', 'Pools and workers');
    this._requests = requests;
    this._changed = new Signal(this);
    this._state = null;
    this._problem = '';
    this._isProblemOfPoll = false;
    this._busy = new Set();
    this._actions = {
      openNotebook,
      openLog,
      dismiss: () => this._tell(''),
      worker: (op, pool, name) => this._commandWorker(op, pool, name),
      stopPool: (pool) => this._stopPool(pool),
      cancelJob: (job, key) =>
        this._do(key, () => requests.command(job.pool, { op: 'cancel', job: job.number })),
      killProcess: (process) => this._killProcess(process),
      interruptKernel: ({ id }) => this._do(`interrupt ${id}`, () => requests.interruptKernel(id)),
    };
    this._poll = new Poll({
      name: 'snakepit-kernel:state',
      factory: () => this._refresh(),
      frequency: { interval: INTERVAL, backoff: true, max: 15 * INTERVAL },
      standby: () => (this.isVisible ? 'when-hidden' : true),
    });
  }

  onAfterShow() {
    void this._poll.refresh();
  }

  dispose() {
    this._poll.dispose();
    super.dispose();
  }

  render() {
    return h(UseSignal, { signal: this._changed }, () =>
      h(View, {
        state: this._state,
        problem: this._problem,
        busy: this._busy,
        actions: this._actions,
      }),
    );
  }

  async _refresh() {
    try {
      this._state = await this._requests.state();
    } catch (error) {
      this._tell(error.message, { isOfPoll: true });
      throw error; // so that the next request waits longer
    }
    if (this._isProblemOfPoll) this._tell('');
    this._changed.emit();
  }

  _tell(problem, { isOfPoll = false } = {}) {
    this._problem = problem;
    this._isProblemOfPoll = isOfPoll;
    this._changed.emit();
  }

  /** Do something, with its button disabled meanwhile; show why it has failed, or what is new. */
  async _do(key, action) {
    this._busy.add(key);
    this._tell('');
    try {
      await action();
    } catch (error) {
      this._tell(error.message);
    } finally {
      this._busy.delete(key);
      this._changed.emit();
      void this._poll.refresh();
    }
  }

  async _commandWorker(op, pool, name) {
    if (op === 'kill') {
      const body = 'What it runs fails, and what it holds in memory is lost. A new worker takes its place.';
      if (!(await isConfirmed(`Kill worker ${name}?`, body, 'Kill'))) return;
    }
    await this._do(`${op} ${name}`, () => this._requests.command(pool.id, { op, worker: name }));
  }

  async _stopPool(pool) {
    const body = 'All its workers end, with what they run and hold in memory. Sessions are kept.';
    if (!(await isConfirmed(`Stop pool ${pool.name}?`, body, 'Stop'))) return;
    await this._do(`stop ${pool.id}`, () => this._requests.command(pool.id, { op: 'stop' }));
  }

  async _killProcess({ id, name }) {
    const body = 'It ends with everything that it has started.';
    if (!(await isConfirmed(`Kill process ${name}?`, body, 'Kill'))) return;
    await this._do(`kill ${id}`, () => this._requests.killProcess(id));
  }
}
