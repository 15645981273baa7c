// The log of a background process, in a tab of its own.

import { MainAreaWidget } from '@jupyterlab/apputils';
import { listIcon } from '@jupyterlab/ui-components';
import { Poll } from '@lumino/polling';
import { Widget } from '@lumino/widgets';

const INTERVAL = 2000; // milliseconds

class Log extends Widget {
  constructor(requests, id) {
    super({ node: document.createElement('pre') });
    this.addClass('jp-Snakepit-log');
    this.node.tabIndex = 0; // so that it can be scrolled by keys
    this._hasEnded = false;
    this._poll = new Poll({
      name: `snakepit-kernel:log-${id}`,
      factory: async () => this._show(await requests.log(id)),
      frequency: { interval: INTERVAL, backoff: true, max: 15 * INTERVAL },
      standby: () => (this.isVisible && !this._hasEnded ? 'when-hidden' : true),
    });
  }

  onAfterShow() {
    void this._poll.refresh();
  }

  dispose() {
    this._poll.dispose();
    super.dispose();
  }

  _show({ text, status, is_cut: isCut }) {
    const { node } = this;
    const isAtEnd = node.scrollTop + node.clientHeight >= node.scrollHeight - 4;
    const end = status === 'running' ? '' : `\n[the process has ended: ${status}]`;
    node.textContent = `${isCut ? '[…]\n' : ''}${text}${end}`;
    if (isAtEnd) node.scrollTop = node.scrollHeight;
    this._hasEnded = status !== 'running';
  }
}

/** Make the tab with the log of a process. */
export function makeLog(requests, process) {
  const tab = new MainAreaWidget({ content: new Log(requests, process.id) });
  tab.id = `snakepit-log-${process.id}`;
  tab.title.label = `Log of ${process.name}`;
  tab.title.icon = listIcon;
  tab.title.closable = true;
  return tab;
}
