// Does the cluster serve? Every route of the demo application once a second, by name, and who answered.
// In: TARGET (https://balancer:8443), TARGET_HTTP (http://balancer:8080), DURATION (10s), RATE per second (5), NODES (1).
// Out: exit code 0 only if every check held, no request failed and at least NODES nodes answered.

import http from "k6/http";
import { check } from "k6";

const target = __ENV.TARGET || "https://balancer:8443";
const targetHttp = __ENV.TARGET_HTTP || "http://balancer:8080";
const nodesWanted = Number(__ENV.NODES || 1);

export const options = {
  insecureSkipTLSVerify: true, // the certificate is from the cluster's own CA
  scenarios: {
    smoke: {
      executor: "constant-arrival-rate",
      rate: Number(__ENV.RATE || 5),
      timeUnit: "1s",
      duration: __ENV.DURATION || "10s",
      preAllocatedVUs: 20,
    },
  },
  thresholds: {
    checks: ["rate==1"],
    http_req_failed: ["rate==0"],
    dropped_iterations: ["count==0"],
    "http_req_duration{name:hello}": ["p(99)<1000"],
  },
};

const get = (path, name, params = {}) => http.get(target + path, { tags: { name }, ...params });

// Before the load: which nodes there are. A test of its own, because no VU sees what the others saw.
export function setup() {
  const nodes = new Set();
  const workers = new Set();
  for (let i = 0; i < 300 && nodes.size < nodesWanted; i++) {
    const who = get("/whoami", "whoami").json();
    nodes.add(who.node);
    workers.add(`${who.node}/${who.worker}`);
  }
  check(nodes, { [`at least ${nodesWanted} node(s) answer`]: (n) => n.size >= nodesWanted });
  console.log(`answered by ${nodes.size} node(s), ${workers.size} worker(s)`);
}

export default function () {
  const redirect = http.get(`${targetHttp}/hello`, { redirects: 0, tags: { name: "redirect" } });
  check(redirect, {
    "plain HTTP is redirected": (r) => r.status === 308 || r.status === 307,
    "to HTTPS": (r) => (r.headers.Location || "").startsWith("https://"),
  });

  const hello = get("/hello", "hello");
  check(hello, {
    "hello answers": (r) => r.status === 200 && r.body.trim() === "Hello World!",
    "over HTTP/2": (r) => r.proto === "HTTP/2.0",
    "over TLS 1.3": (r) => r.tls_version === "tls1.3",
  });

  check(get("/whoami", "whoami"), {
    "whoami names node and worker": (r) => r.json("node") !== undefined && r.json("worker") !== undefined,
    "the application knows the scheme": (r) => r.json("scheme") === "https",
  });

  const body = "servery ".repeat(8192);
  check(http.post(`${target}/echo`, body, { tags: { name: "echo" } }), { "echo sends 64 KiB back": (r) => r.body === body });
  check(get("/bytes/100000", "bytes"), { "bytes sends 100,000": (r) => r.body.length === 100000 });
  check(get("/sleep/20", "sleep"), { "sleep answers": (r) => r.status === 200 });
  check(get("/stream/3/5", "stream"), { "a stream of events ends": (r) => r.status === 200 && r.body.includes("data:") });
  check(get("/status/418", "status", { responseCallback: http.expectedStatuses(418) }), {
    "the application's status is passed on": (r) => r.status === 418,
  });
}
