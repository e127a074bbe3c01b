"""The report's style sheet: one set of colours for light, dark and paper, told apart with every
colour vision.
"""

from typing import Final

STYLE: Final = """
:root{color-scheme:light dark;--paper:#fcfcfb;--card:#fff;--ink:#1d2126;--soft:#5c6670;--rule:#e3e6e9;
--a:#2f73b7;--b:#e08214;--c:#2a9d78;--p:#c3c8cd;--x:#cc79a7;--bad:#c43c31;--ok:#2a8a5e}
@media (prefers-color-scheme:dark){:root{--paper:#14171a;--card:#1b1f23;--ink:#e6e9ec;--soft:#9aa4ae;
--rule:#30363c;--a:#5b9bd8;--b:#f0a046;--c:#4bbf98;--p:#545c64;--x:#d98fb8;--bad:#ec7063;--ok:#5cc294}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:1180px;margin:0 auto;padding:28px 20px 60px}
h1{font-size:25px;line-height:1.25;margin:0;overflow-wrap:anywhere}
h2{font-size:18px;margin:38px 0 12px;padding-bottom:5px;border-bottom:1px solid var(--rule)}
.about{color:var(--soft);margin:5px 0 20px;overflow-wrap:anywhere}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px}
.card{background:var(--card);border:1px solid var(--rule);border-radius:8px;padding:11px 14px}
.card .what{color:var(--soft);font-size:13px}
.card .figure{font-size:21px;white-space:nowrap;font-weight:600;line-height:1.35;font-variant-numeric:tabular-nums}
.card .more{color:var(--soft);font-size:13px;line-height:1.4}
.bad-text{color:var(--bad);font-weight:600}.ok-text{color:var(--ok);font-weight:600}
.roles{margin:16px 0 0;font-size:14px}
.strip{display:flex;height:14px;border-radius:4px;overflow:hidden;margin-top:6px}
.strip .part{display:block;height:100%}
.role{margin-left:14px;white-space:nowrap}
.swatch{display:inline-block;width:10px;height:10px;margin-right:5px;border-radius:2px}
.plots{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:16px}
figure{margin:0;background:var(--card);border:1px solid var(--rule);border-radius:8px;padding:14px 14px 10px;
break-inside:avoid;min-width:0}
figure.wide{grid-column:1/-1}
figcaption{font-weight:600;font-size:15px;line-height:1.35;margin-bottom:8px}
svg{display:block;width:100%;height:auto;font-family:inherit}
.note,.nothing{color:var(--soft);font-size:13.5px;margin:8px 2px 2px;line-height:1.45}
.nothing{font-style:italic;margin:4px 2px}
text{fill:var(--ink);font-size:12.5px}
.wide text{font-size:9.6px}
text.tick{fill:var(--soft);font-variant-numeric:tabular-nums}
text.strong{fill:var(--ink);font-weight:600}
.middle{text-anchor:middle}.end{text-anchor:end}
.grid{stroke:var(--rule);stroke-width:1}.axis{stroke:var(--soft);stroke-width:1}
.fill-a{fill:var(--a);background:var(--a)}.fill-b{fill:var(--b);background:var(--b)}
.fill-c{fill:var(--c);background:var(--c)}.fill-p{fill:var(--p);background:var(--p)}
.fill-x{fill:var(--x)}.fill-bad{fill:var(--bad)}.fill-whole,.fill-ink{fill:var(--ink)}
.fill-band{fill:var(--b);fill-opacity:.3}
.edged{stroke:var(--card);stroke-width:.6}
.line-a,.line-b,.line-bad,.told{fill:none;stroke-width:2;stroke-linejoin:round}
.line-a{stroke:var(--a)}.line-b{stroke:var(--b)}.line-bad{stroke:var(--bad)}
.told{stroke:var(--soft);stroke-width:1.6}
.area-a{fill:var(--a);fill-opacity:.14}.area-b{fill:var(--b);fill-opacity:.22}
.mark{stroke:var(--ink);stroke-width:1;stroke-dasharray:3 3}
.mark-name,.slo-name{paint-order:stroke;stroke:var(--card);stroke-width:3px;stroke-linejoin:round}
text.mark-name{font-size:11.5px}
.slo{stroke:var(--bad);stroke-width:2}text.slo-name{fill:var(--bad);font-weight:600}
.whole{stroke:var(--ink);stroke-width:1.6}.change{stroke:var(--soft);stroke-width:1;stroke-dasharray:2 3}
.even{stroke:var(--ink);stroke-width:1;stroke-dasharray:4 3}
.pixels{image-rendering:pixelated}.unused{fill:#3c3c3c}
.table{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:13.5px}
th,td{text-align:left;vertical-align:top;padding:5px 14px 5px 0;border-bottom:1px solid var(--rule);
overflow-wrap:break-word;max-width:34em}
th{color:var(--soft);font-weight:600;white-space:nowrap}
td:first-child{white-space:nowrap}
details{border:1px solid var(--rule);border-radius:8px;background:var(--card);margin:8px 0;padding:0 14px}
summary{cursor:pointer;padding:9px 0;font-weight:600}
details[open]{padding-bottom:12px}
@media screen and (max-width:860px){.plots{grid-template-columns:minmax(0,1fr)}main{padding:18px 12px 40px}
.wide text{font-size:13px}text{font-size:11.5px}}
@media print{:root{--paper:#fff;--card:#fff;--ink:#000;--soft:#444;--rule:#ccc;--a:#2f73b7;--b:#e08214;
--c:#2a9d78;--p:#c3c8cd;--x:#cc79a7;--bad:#c43c31}body{font-size:12px}main{max-width:none;padding:0}
.plots{gap:8px}figure{padding:8px}text{font-size:14.5px}.wide text{font-size:10.5px}
figure,.card,.strip,.swatch{print-color-adjust:exact;-webkit-print-color-adjust:exact}
h2{break-after:avoid}}
"""
