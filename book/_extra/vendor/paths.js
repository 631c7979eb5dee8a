// Tells the widget manager where its modules and fonts lie. The address is taken from
// this script's own, so that it holds on a server, in a subfolder and from file://.
{
  const folder = new URL(".", document.currentScript.src).href.replace(/\/$/, "");
  window.require.config({
    paths: {
      anywidget: `${folder}/anywidget`,
      // Modules inside embed-amd.js look for their fonts beside their own address.
      "@jupyter-widgets": folder,
      "@jupyter-widgets/html-manager/dist": folder,
    },
  });
}
