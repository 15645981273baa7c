// What the panel asks of the server's extension, below /snakepit/ there.

import { URLExt } from '@jupyterlab/coreutils';
import { KernelAPI, ServerConnection } from '@jupyterlab/services';

const NOT_ENABLED =
  "The server's part of this panel is not enabled. Run `jupyter server extension enable " +
  'snakepit_kernel` where the server runs, and start the server again.';

export class Requests {
  constructor(settings) {
    this._settings = settings;
  }

  /** Everything that the panel shows. */
  async state() {
    try {
      return await this._request('state');
    } catch (error) {
      if (error.response?.status === 404) throw new Error(NOT_ENABLED);
      throw error;
    }
  }

  /** Send a pool a command; the answer comes when it has been obeyed. */
  command(pool, command) {
    return this._request(`pools/${pool}`, { method: 'POST', body: JSON.stringify(command) });
  }

  killProcess(id) {
    return this._request(`processes/${encodeURIComponent(id)}`, { method: 'DELETE' });
  }

  log(id) {
    return this._request(`processes/${encodeURIComponent(id)}/log`);
  }

  interruptKernel(id) {
    return KernelAPI.interruptKernel(id, this._settings);
  }

  async _request(path, init = {}) {
    const url = URLExt.join(this._settings.baseUrl, 'snakepit', path);
    const response = await ServerConnection.makeRequest(url, init, this._settings);
    if (!response.ok) {
      const { message } = await response.json().catch(() => ({}));
      throw new ServerConnection.ResponseError(response, message || response.statusText);
    }
    return response.status === 204 ? null : response.json();
  }
}
