// What grpc-js sees of a front. Arguments: plain address, TLS address, certificate.
const grpc = require('@grpc/grpc-js');
const fs = require('fs');

const raw = (bytes) => bytes;
const names = ['Echo', 'Boom', 'Park', 'Meta', 'Big'];
const method = (name) => ({
  path: '/t.T/' + name, requestStream: false, responseStream: false,
  requestSerialize: raw, requestDeserialize: raw, responseSerialize: raw, responseDeserialize: raw,
});
const Client = grpc.makeGenericClientConstructor(Object.fromEntries(names.map((name) => [name, method(name)])), 'T');

let failed = false;
function check(ok, ...what) {
  if (!ok) { failed = true; console.log('FAILED:', ...what); }
}

async function talk(address, credentials) {
  const client = new Client(address, credentials);
  const call = (name, body, options = {}) => new Promise((resolve) => {
    const running = client[name](body, new grpc.Metadata(), options, (error, value) =>
      resolve({ code: error ? error.code : 0, text: error && error.details, size: value ? value.length : 0 }));
    if (options.cancelAfter) setTimeout(() => running.cancel(), options.cancelAfter);
  });
  let got = await call('Echo', Buffer.alloc(300)); check(got.code === 0 && got.size === 300, 'echo', got);
  got = await call('Big', Buffer.from('4000000')); check(got.size === 4000000, 'big', got);
  got = await call('Boom', Buffer.alloc(0)); check(got.code === 10 && got.text === 'boom', 'status', got);
  got = await call('Park', Buffer.alloc(0), { deadline: Date.now() + 200 }); check(got.code === 4, 'deadline', got);
  got = await call('Park', Buffer.alloc(0), { cancelAfter: 100 }); check(got.code === 1, 'cancel', got);
  const all = await Promise.all(Array.from({ length: 200 }, () => call('Echo', Buffer.alloc(300))));
  check(all.every((one) => one.code === 0 && one.size === 300), '200 at once');
  client.close();
}

(async () => {
  await talk(process.argv[2], grpc.credentials.createInsecure());
  await talk(process.argv[3], grpc.credentials.createSsl(fs.readFileSync(process.argv[4])));
  if (failed) process.exit(1);
  console.log('ok');
})();
