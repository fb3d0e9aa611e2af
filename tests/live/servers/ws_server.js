// Serves WebSockets with the npm package ws: `node ws_server.js PORT`. The path says how.
"use strict";

const http = require("http");
const { WebSocketServer } = require("ws");

const REFUSALS = {
  "/401": [401, "Unauthorized", { "WWW-Authenticate": 'Basic realm="nova"' }, "who are you?"],
  "/429": [429, "Too Many Requests", { "Retry-After": "7" }, "slow down"],
  "/307": [307, "Temporary Redirect", { Location: "/echo" }, ""],
};

const WAYS = {
  "/echo": echo,
  "/mute": echo, // but pings are not answered, see below
  "/protocol": (ws) => ws.send(ws.protocol),
  "/extensions": (ws) => ws.send(ws.extensions),
  // "3 ab" is answered by one message of three fragments, "ab" each.
  "/fragments": (ws) =>
    ws.on("message", (data) => {
      const [count, piece] = data.toString().split(" ");
      for (let left = Number(count); left > 0; left -= 1) ws.send(piece, { fin: left === 1 });
    }),
  // "1001 bye" is taken for an order.
  "/close": (ws) =>
    ws.on("message", (data) => {
      const [, code, reason] = data.toString().match(/^(\d+) (.*)$/);
      ws.close(Number(code), reason);
    }),
  "/reset": (ws, socket) => ws.on("message", () => socket.resetAndDestroy()),
  // Drops who has not answered the last ping.
  "/strict": (ws) => {
    let answered = true;
    ws.on("pong", () => (answered = true));
    const timer = setInterval(() => {
      if (!answered) return ws.terminate();
      answered = false;
      ws.ping();
    }, 300);
    ws.on("close", () => clearInterval(timer));
    echo(ws);
  },
};

function echo(ws) {
  ws.on("message", (data, binary) => ws.send(data, { binary }));
}

const options = {
  noServer: true,
  perMessageDeflate: true,
  handleProtocols: (offered) => (offered.has("chat.v2") ? "chat.v2" : false),
};
const speaking = new WebSocketServer(options);
const silent = new WebSocketServer({ ...options, autoPong: false });

const server = http.createServer((request, response) => response.writeHead(426).end());

server.on("upgrade", (request, socket, head) => {
  socket.on("error", () => {}); // a client may be gone at any time
  const path = request.url.split("?")[0];
  if (path in REFUSALS) {
    const [status, phrase, headers, body] = REFUSALS[path];
    const lines = Object.entries({ ...headers, "Content-Length": body.length, Connection: "close" });
    const head = lines.map(([name, value]) => `${name}: ${value}\r\n`).join("");
    socket.end(`HTTP/1.1 ${status} ${phrase}\r\n${head}\r\n${body}`);
  } else if (path === "/hang") {
    // No answer, and the connection stays open.
  } else if (path in WAYS) {
    const upgrade = path === "/mute" ? silent : speaking;
    upgrade.handleUpgrade(request, socket, head, (ws) => {
      ws.on("error", () => {});
      WAYS[path](ws, socket);
    });
  } else {
    socket.end("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
  }
});

server.listen(Number(process.argv[2]), "127.0.0.1");
