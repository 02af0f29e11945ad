"""The report's style sheet: light and dark, wide and narrow."""

STYLE = """
:root { --paper:#fbfbf9; --card:#fff; --ink:#1c1f24; --soft:#5d6470; --line:#dfe2e6; --s1:#c2681a; --s2:#2463c4;
  --s3:#2f8f6b; --accent:#2463c4; --S:#8a5a00; --Sb:#fdf0d3; --I:#5b3fb5; --Ib:#ece7fb; --D:#b3261e; --Db:#fbe4e2; }
@media (prefers-color-scheme: dark) { :root { --paper:#14161a; --card:#1c1f25; --ink:#e8eaed; --soft:#9aa2ae;
  --line:#343941; --s1:#f0a35e; --s2:#7fb0ff; --s3:#6cc9a4; --accent:#7fb0ff; --S:#f2c879; --Sb:#3d3014; --I:#c3b2ff;
  --Ib:#2f2850; --D:#ff9d94; --Db:#4a211e; } }
* { box-sizing:border-box; }
body { margin:0; background:var(--paper); color:var(--ink); line-height:1.5;
  font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif; }
main { max-width:62rem; margin:0 auto; padding:2rem 1.25rem 4rem; }
.eyebrow { margin:0; color:var(--soft); font-size:.85rem; }
h1 { margin:.1rem 0 1.25rem; font-size:2rem; line-height:1.2; overflow-wrap:anywhere; }
h2 { margin:0 0 .9rem; font-size:1.2rem; }
section { margin-top:2.5rem; }
.tiles { display:grid; grid-template-columns:repeat(auto-fit,minmax(10.5rem,1fr)); gap:.75rem; margin:0; }
.tile, .chart, .worst li { background:var(--card); border:1px solid var(--line); border-radius:.6rem; }
.tile { padding:.8rem 1rem; }
.tile dt { color:var(--soft); font-size:.85rem; overflow-wrap:anywhere; }
.tile dd { margin:0; font-size:1.6rem; font-weight:650; line-height:1.3; }
.tile small { font-size:.95rem; font-weight:400; color:var(--soft); }
.tile p { margin:0; font-size:.85rem; color:var(--soft); }
.scroll { overflow-x:auto; }
table { border-collapse:collapse; width:100%; font-size:.92rem; }
th, td { padding:.42rem .7rem; text-align:left; white-space:nowrap; font-weight:400; }
th:first-child, td:first-child { padding-left:.2rem; }
thead th { color:var(--soft); font-size:.82rem; border-bottom:1px solid var(--line); }
tbody tr { border-bottom:1px solid var(--line); }
.n { text-align:right; font-variant-numeric:tabular-nums; }
.best td, .best th { font-weight:650; }
.bar { min-width:6rem; padding-left:0; }
.bar i { display:block; height:.5rem; min-width:2px; border-radius:.25rem; background:var(--accent); }
.note, .legend { color:var(--soft); font-size:.85rem; margin:.7rem 0 0; }
.legend { margin:0 0 .8rem; display:flex; flex-wrap:wrap; gap:.5rem; align-items:baseline; }
.legend span { padding:.05rem .5rem; border-radius:.3rem; }
.charts { display:grid; grid-template-columns:repeat(auto-fit,minmax(min(24rem,100%),1fr)); gap:.75rem; }
.chart { margin:0; padding:.7rem .8rem; }
.chart figcaption { font-size:.9rem; font-weight:600; }
.chart svg { display:block; width:100%; height:auto; }
.chart svg text { font-family:inherit !important; fill:var(--ink) !important; }
.worst { list-style:none; margin:.6rem 0 0; padding:0; display:grid; gap:.6rem; }
.worst li { padding:.7rem .9rem; }
.name { margin:0 0 .35rem; font-size:.85rem; color:var(--soft); overflow-wrap:anywhere; }
.name b { color:var(--ink); }
.name span { margin-left:.6rem; }
.name code { margin-left:.4rem; }
.aligned { margin:0; display:flex; flex-wrap:wrap; gap:.35rem .25rem; }
.aligned > span { display:inline-flex; flex-direction:column; padding:.1rem .35rem; border-radius:.35rem;
  line-height:1.4; overflow-wrap:anywhere; }
.hyp { color:var(--soft); }
.kind { font-size:.7rem; font-weight:700; line-height:1.2; }
.S { background:var(--Sb); color:var(--S); } .I { background:var(--Ib); color:var(--I); }
.D { background:var(--Db); color:var(--D); }
.S .hyp, .I .hyp, .D .hyp { color:inherit; font-weight:650; }
.D .ref { text-decoration:line-through; }
summary { cursor:pointer; padding:.3rem 0; color:var(--accent); }
details + details { margin-top:.5rem; }
code, pre { font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace; font-size:.85em; }
pre { background:var(--card); border:1px solid var(--line); border-radius:.6rem; padding:1rem; overflow-x:auto; }
@media (max-width:34rem) { main { padding:1.25rem .9rem 3rem; } h1 { font-size:1.6rem; } .bar { display:none; }
  thead th:nth-child(4):empty { display:none; } .tiles { grid-template-columns:1fr 1fr; }
  .tile dd { font-size:1.3rem; } }
@media print { details > * { display:block; } }
"""
