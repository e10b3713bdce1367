// Browsers allow no web worker on file://. This runs the script of one in a hidden frame instead, so that the search works on disk.
if (location.protocol === "file:") {
  window.IFrameWorker = window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      this.loaded = new Promise(resolve => {
        const start = () => {
          const inner = this.frame.contentWindow
          const load = src => new Promise((done, failed) => {
            const script = inner.document.createElement("script")
            Object.assign(script, { src, onload: done, onerror: failed })
            inner.document.body.appendChild(script)
          })
          inner.importScripts = (...urls) => urls.reduce((before, src) => before.then(() => load(src)), Promise.resolve())
          inner.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
          load(new URL(url, document.baseURI).href).then(() => resolve(inner))
        }
        document.body ? (document.body.appendChild(this.frame), start())
          : addEventListener("DOMContentLoaded", () => { document.body.appendChild(this.frame); start() })
      })
    }
    postMessage(data) {
      this.loaded.then(inner => inner.dispatchEvent(new inner.MessageEvent("message", { data })))
    }
    terminate() { this.frame.remove() }
  }
}
