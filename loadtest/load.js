// A steady stream of users, whatever the cluster is doing: requests arrive by the clock, not when the last one was answered.
// In: TARGET (https://balancer:8443), RATE requests per second (200), DURATION (1m), VUS (200 connections, at most twice as many), P99_MS (1000).
// Out: exit code 0 only if no request failed, none was dropped, every answer was right and the 99th percentile is under P99_MS.

import http from "k6/http";
import exec from "k6/execution";
import { check } from "k6";

const target = __ENV.TARGET || "https://balancer:8443";
const vus = Number(__ENV.VUS || 200);

export const options = {
  insecureSkipTLSVerify: true, // the certificate is from the cluster's own CA
  scenarios: {
    users: {
      executor: "constant-arrival-rate",
      rate: Number(__ENV.RATE || 200),
      timeUnit: "1s",
      duration: __ENV.DURATION || "1m",
      preAllocatedVUs: vus,
      maxVUs: 2 * vus,
    },
  },
  thresholds: {
    checks: ["rate==1"],
    http_req_failed: ["rate==0"],
    dropped_iterations: ["count==0"],
    http_req_duration: [`p(99)<${Number(__ENV.P99_MS || 1000)}`],
  },
};

const posted = "servery ".repeat(512);
const get = (path, name) => http.get(target + path, { tags: { name } });

// Out of ten requests: five short ones, two that say who answered, one upload, one download, one that takes a while.
const mix = [
  () => check(get("/hello", "hello"), { "hello is right": (r) => r.status === 200 && r.body.trim() === "Hello World!" }),
  () => check(get("/whoami", "whoami"), { "whoami is right": (r) => r.status === 200 && r.json("node") !== undefined }),
  () =>
    check(http.post(`${target}/echo`, posted, { tags: { name: "echo" } }), {
      "echo is right": (r) => r.status === 200 && r.body === posted,
    }),
  () => check(get("/bytes/16384", "bytes"), { "bytes is right": (r) => r.status === 200 && r.body.length === 16384 }),
  () => check(get("/sleep/50", "sleep"), { "sleep is right": (r) => r.status === 200 }),
];
const turns = [0, 1, 0, 2, 0, 3, 0, 1, 0, 4];

export default function () {
  const answered = mix[turns[exec.scenario.iterationInTest % turns.length]]();
  if (!answered) console.error(`a wrong answer in iteration ${exec.scenario.iterationInTest}`);
}
