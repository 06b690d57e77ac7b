// Labels that transformers.js gives to texts: node classify.cjs ROOT NAME TASK DTYPE < TEXTS.json
const fs = require('fs');
const { env, pipeline } = require('@huggingface/transformers');

async function main() {
  const [root, name, task, dtype] = process.argv.slice(2);
  const texts = JSON.parse(fs.readFileSync(0, 'utf-8'));
  env.allowRemoteModels = false;
  env.localModelPath = root;
  const classify = await pipeline(task, name, { dtype });
  const labels = [];
  for (const text of texts) {
    const found = await classify(text, { ignore_labels: [] });
    labels.push(task === 'text-classification' ? found[0].label : found.map((one) => one.entity));
  }
  console.log(JSON.stringify(labels));
}

main();
