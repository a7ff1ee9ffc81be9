// Adam as a process: a request a line on standard input, an answer a line on standard output.
import { createInterface } from "node:readline";

const options = { lr: 1e-3, betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0, maximize: false };

// What JSON cannot say of a number is sent by its name, which Number() reads: NaN, Infinity, -Infinity, and -0.
const written = (x) => (Object.is(x, -0) ? "-0" : Number.isFinite(x) ? x : String(x));

// One step of one parameter, computed in float64.
function step({ options, parameter, gradient, state, dtype }) {
  const stored = dtype === "float32" ? Math.fround : (x) => x;
  const { lr, eps, weight_decay: decay, maximize } = options;
  const [beta1, beta2] = options.betas;
  const zeros = parameter.map(() => 0);
  state ??= { step: 0, exp_avg: zeros, exp_avg_sq: zeros };
  const t = state.step + 1;
  const answer = { parameter: [], state: { step: t, exp_avg: [], exp_avg_sq: [] } };
  for (let i = 0; i < parameter.length; i++) {
    let [p, g, m, v] = [parameter[i], gradient[i], state.exp_avg[i], state.exp_avg_sq[i]].map(Number);
    g = (maximize ? -g : g) + (decay ? decay * p : 0);
    m = stored(beta1 * m + (1 - beta1) * g);
    v = stored(beta2 * v + (1 - beta2) * g * g);
    const root = Math.sqrt(v / (1 - beta2 ** t)) + eps;
    p = stored(p - (lr / (1 - beta1 ** t)) * (m / root));
    answer.parameter.push(written(p));
    answer.state.exp_avg.push(written(m));
    answer.state.exp_avg_sq.push(written(v));
  }
  return answer;
}

for await (const line of createInterface({ input: process.stdin })) {
  const request = JSON.parse(line);
  console.log(JSON.stringify("hello" in request ? { options } : step(request.step)));
}
