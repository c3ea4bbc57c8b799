#!/bin/sh
# Check pages for accessibility with axe-core, in Chromium: scripts/check_page.sh PAGE...
# Needs Node and Chromium; its two npm packages go to a temporary folder. Exits with 1 where axe-core finds a violation.
set -eu
[ $# -gt 0 ] || { echo "usage: scripts/check_page.sh PAGE..." >&2; exit 2; }
browser=${CHROMIUM:-$(command -v chromium || command -v chromium-browser || command -v google-chrome)} || {
  echo "No Chromium: install it, or set CHROMIUM to its path." >&2; exit 2; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
npm install --silent --no-audit --no-fund --prefix "$folder" axe-core@4 puppeteer-core@24 > /dev/null
cat > "$folder/check.mjs" <<'SCRIPT'
import { readFileSync } from "node:fs";
import { resolve } from "node:path";
import { pathToFileURL } from "node:url";
import puppeteer from "puppeteer-core";

const [executablePath, ...pages] = process.argv.slice(2);
const axe = readFileSync(new URL("node_modules/axe-core/axe.min.js", import.meta.url), "utf8");
const browser = await puppeteer.launch({ executablePath, args: ["--no-sandbox", "--disable-gpu"] });
let violations = 0;
for (const name of pages)
  for (const [width, scheme] of [[1280, "light"], [1280, "dark"], [390, "light"], [390, "dark"]]) {
    const page = await browser.newPage();
    await page.setBypassCSP(true); // the page's policy lets no other script run
    await page.setViewport({ width, height: 900 });
    await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
    await page.goto(pathToFileURL(resolve(name)).href);
    await page.evaluate(() => document.querySelectorAll("details").forEach((box) => { box.open = true; }));
    await page.evaluate(axe);
    const found = await page.evaluate(() => globalThis.axe.run());
    violations += found.violations.length;
    console.log(`${name}, ${width} pixels, ${scheme}: ${found.violations.length} violations`);
    for (const { impact, id, nodes } of found.violations)
      console.log(`  ${impact} ${id}, ${nodes.length} times: ${nodes[0].html.slice(0, 200)}`);
    await page.close();
  }
await browser.close();
process.exit(violations ? 1 : 0);
SCRIPT
node "$folder/check.mjs" "$browser" "$@"
