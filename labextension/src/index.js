// The plugin: a sidebar with the pools, workers, processes and jobs of this server's kernels.

import { ILayoutRestorer } from '@jupyterlab/application';
import { ICommandPalette } from '@jupyterlab/apputils';
import { LabIcon } from '@jupyterlab/ui-components';

import logo from '../../kernelspec/logo-svg.svg';
import { makeLog } from './log';
import { Panel } from './panel';
import { Requests } from './requests';

const ID = 'snakepit-panel';
const COMMAND = 'snakepit-kernel:show';

function activate(app, restorer, palette) {
  const requests = new Requests(app.serviceManager.serverSettings);
  const logs = new Map(); // the open tabs, by the id of the process

  function openLog(process) {
    let tab = logs.get(process.id);
    if (!tab) {
      tab = makeLog(requests, process);
      logs.set(process.id, tab);
      tab.disposed.connect(() => logs.delete(process.id));
      app.shell.add(tab, 'main', { mode: 'split-bottom' });
    }
    app.shell.activateById(tab.id);
  }

  const openNotebook = (path) => void app.commands.execute('docmanager:open', { path });
  const panel = new Panel(requests, { openNotebook, openLog });
  panel.id = ID;
  panel.title.icon = new LabIcon({ name: 'snakepit-kernel:logo', svgstr: logo });
  panel.title.caption = 'Snakepit: pools and workers';
  app.shell.add(panel, 'left', { rank: 250 });
  restorer?.add(panel, ID);

  app.commands.addCommand(COMMAND, {
    label: 'Show Pools and Workers',
    caption: "The pools, workers, processes and jobs of this server's notebooks",
    execute: () => app.shell.activateById(ID),
  });
  palette?.addItem({ command: COMMAND, category: 'Snakepit' });
}

export default {
  id: 'snakepit-kernel:panel',
  description: 'Pools, workers, processes and jobs of your notebooks, in the sidebar.',
  autoStart: true,
  optional: [ILayoutRestorer, ICommandPalette],
  activate,
};
