"""How the report looks, and what draws its plots. Both go into the page as they are."""

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fdfdfc; --raised: #f5f5f2; --ink: #1c1e21; --soft: #5d626b; --line: #e2e2dd;
  --accent: #2f6fca;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #16181b; --raised: #1f2226; --ink: #e8e8e5; --soft: #a2a7b0; --line: #33373d;
    --accent: #7fb0f5;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
  overflow-wrap: break-word;
}
main { max-width: 60rem; margin: 0 auto; padding: 3.5rem 1.5rem 6rem; }
h1 { font-size: 2.4rem; line-height: 1.15; letter-spacing: -.02em; margin: .4rem 0 1rem; font-weight: 650;
  text-wrap: balance; }
h2 { font-size: 1.35rem; letter-spacing: -.01em; margin: 4.5rem 0 .5rem; font-weight: 620; }
h3 { font-size: 1rem; margin: 2.2rem 0 .3rem; font-weight: 620; }
p, ul, ol { max-width: 44rem; margin: .6rem 0; }
p.lead { font-size: 1.1rem; color: var(--soft); }
.name { color: var(--soft); margin: 0; }
.soft, small, caption { color: var(--soft); }
ul { padding-left: 1.15rem; }
li { margin: .25rem 0; }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); gap: .9rem; margin: 1.8rem 0; }
.numbers > div { background: var(--raised); border-radius: 10px; padding: .9rem 1.1rem 1rem; }
.numbers dt { color: var(--soft); font-size: .88rem; }
.numbers dd { margin: 0; }
.numbers .value { font-size: 1.7rem; line-height: 1.25; font-weight: 620; font-variant-numeric: tabular-nums; }
.numbers .beside { font-size: .88rem; color: var(--soft); }
.scroll { overflow-x: auto; margin: 1rem 0; }
.scroll:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .4rem; }
th, td { text-align: left; vertical-align: top; padding: .45rem 1.1rem .45rem 0; border-bottom: 1px solid var(--line); }
th { font-weight: 500; color: var(--soft); white-space: nowrap; }
td.number, th.number { text-align: right; white-space: nowrap; }
td.short, td.variant { white-space: nowrap; }
td.long { min-width: 18rem; }
tr.chosen td { background: var(--raised); font-weight: 600; }
tr.chosen td:first-child { box-shadow: inset 3px 0 0 var(--accent); padding-left: .7rem; }
td small { font-weight: 400; }
.plot { width: 100%; margin: 1rem 0 .5rem; }
.dot { display: inline-block; width: .65em; height: .65em; border-radius: 50%; margin-right: .45em; }
.dot.diamond { border-radius: 0; transform: rotate(45deg) scale(.87); }
.dot.square { border-radius: 0; }
.dot.cross { clip-path: polygon(35% 0, 65% 0, 65% 35%, 100% 35%, 100% 65%, 65% 65%, 65% 100%, 35% 100%, 35% 65%,
  0 65%, 0 35%, 35% 35%); border-radius: 0; }
code, pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: .86em; }
pre { background: var(--raised); border-radius: 10px; padding: 1rem 1.1rem; overflow-x: auto; line-height: 1.5; }
details { margin: .6rem 0; }
summary { cursor: pointer; color: var(--accent); }
td details { margin: .2rem 0 0; } td pre { max-width: 40rem; }
.tag { border: 1px solid var(--line); border-radius: 99px; padding: .05rem .55rem; color: var(--soft); }
footer { margin-top: 5rem; border-top: 1px solid var(--line); padding-top: 1rem; }
footer { color: var(--soft); font-size: .88rem; }
@media (max-width: 40rem) {
  main { padding: 2rem 1rem 4rem; }
  h1 { font-size: 1.75rem; }
  h2 { margin-top: 3.2rem; }
  .numbers { grid-template-columns: 1fr 1fr; gap: .6rem; }
  th, td { padding-right: .8rem; }
  td.variant { white-space: normal; min-width: 7.5rem; }
  td.long { min-width: 12rem; }
  .numbers > div:first-child { grid-column: 1 / -1; }
  .numbers > div { padding: .7rem .8rem; }
  .numbers .value { font-size: 1.3rem; }
}
@media print { main { max-width: none; } details > * { display: block; } }
"""

SCRIPT = """
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const narrow = window.matchMedia("(max-width: 40rem)");
  const value = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const axis = (given) => ({
    ...given, gridcolor: value("--line"), linecolor: value("--line"), tickcolor: value("--line"),
    title: { ...given.title, font: { size: 13, color: value("--soft") } },
  });
  const layout = (given) => ({
    ...given, xaxis: axis(given.xaxis), yaxis: axis(given.yaxis),
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: value("--ink") },
    hoverlabel: {
      ...given.hoverlabel, bgcolor: value("--paper"), bordercolor: value("--line"),
      font: { size: 13, color: value("--ink") },
    },
    legend: { ...given.legend, font: { size: narrow.matches ? 11 : 12 } },
    dragmode: narrow.matches ? false : "zoom",
  });
  const inked = (trace) => {
    if (trace.meta !== "ink") return trace;
    const color = value("--ink");
    return { ...trace, marker: { ...trace.marker, color, line: { ...trace.marker.line, color } } };
  };
  const draw = () => {
    for (const [id, figure] of Object.entries(figures)) {
      const place = document.getElementById("plot-" + id);
      Plotly.react(place, figure.data.map(inked), layout(figure.layout), { responsive: true, displayModeBar: false });
    }
  };
  draw();
  dark.addEventListener("change", draw);
  narrow.addEventListener("change", draw);
})();
"""
