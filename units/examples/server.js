// Answers HTTP requests on the listening socket whose descriptor is the first argument.

const http = require("node:http");

const server = http.createServer((request, response) => response.end(`hello from pid ${process.pid}\n`));
server.listen({ fd: Number(process.argv[2]) });

// Answer what has been accepted, then end.
process.on("SIGTERM", () => {
  server.close(() => process.exit(0));
  server.closeIdleConnections?.();
});
