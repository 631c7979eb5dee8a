// Tells RequireJS where the widget modules lie. The address is taken from this
// script's own, so that it holds on a web server, in a subfolder and from file://.
window.require.config({
  paths: { anywidget: new URL("anywidget", document.currentScript.src).href },
});
