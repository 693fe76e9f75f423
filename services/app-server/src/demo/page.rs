//! The demo's page: comes in who answers, goes out one HTML document with everything in it. It asks no other site for
//! anything and trusts nothing that came from the client.

use super::Whoami;
use std::fmt::Write as _;

/// What there is to try, with a word about each.
const TRY: [(&str, &str); 9] = [
    ("/hello", "a greeting"),
    ("/whoami", "this answer as JSON"),
    ("/headers", "the request as the application sees it"),
    ("/sleep/500", "an answer after half a second"),
    ("/burn/200", "a fifth of a second of a core"),
    ("/stream/10/500", "ten server-sent events"),
    ("/bytes/1000000", "a million bytes"),
    ("/status/418", "any status"),
    ("/echo", "your request's body back, streamed"),
];

const HEAD: &str = r#"<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Servery</title>
<style>
:root { --ink: #1d2430; --soft: #5b6675; --paper: #fbfaf7; --card: #ffffff; --line: #e3e0d8; --warm: #c2571a; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e9e6df; --soft: #a19c92; --paper: #16181d; --card: #1f2229; --line: #33373f; --warm: #f0975a; }
}
* { box-sizing: border-box; }
body { margin: 0; padding: 8vh 1.25rem 3rem; background: var(--paper); color: var(--ink); font: 17px/1.55 system-ui, sans-serif; }
main { max-width: 42rem; margin: 0 auto; }
h1 { font-size: 2.2rem; margin: 0; letter-spacing: -.02em; }
h2 { font-size: 1rem; margin: 2.2rem 0 .6rem; color: var(--soft); font-weight: 600; }
p { margin: .5rem 0 0; color: var(--soft); }
.card { margin-top: 1.8rem; padding: 1.2rem 1.4rem; background: var(--card); border: 1px solid var(--line); border-radius: 14px; }
.who { font-size: 1.35rem; color: var(--ink); margin: 0; }
.who b { color: var(--warm); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.2rem; margin: 1rem 0 0; font-size: .92rem; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; font-family: ui-monospace, monospace; }
ul { list-style: none; padding: 0; margin: 0; }
li { display: flex; gap: 1rem; justify-content: space-between; padding: .45rem 0; border-bottom: 1px solid var(--line); font-size: .95rem; }
li span { color: var(--soft); text-align: right; }
a { color: var(--warm); text-decoration: none; font-family: ui-monospace, monospace; }
a:hover, a:focus { text-decoration: underline; }
</style>
</head>
<body>
<main>
<h1>It is served.</h1>
<p>This is the demo application of Servery. Load the page again and another worker may answer.</p>
"#;

pub(super) fn render(who: &Whoami) -> String {
    let mut page = String::with_capacity(8 * 1024);
    page.push_str(HEAD);
    // writing to a String cannot fail
    let _ = writeln!(
        page,
        "<div class=\"card\">\n<p class=\"who\">Answered by worker <b>{}</b> on node <b>{}</b></p>\n<dl>",
        who.worker,
        escaped(&who.node)
    );
    let absent = || "not said".to_owned();
    for (name, value) in [
        ("application", who.app.clone()),
        ("process", who.pid.to_string()),
        ("request", who.request_id.clone().unwrap_or_else(absent)),
        ("you are", who.client_ip.clone().unwrap_or_else(absent)),
        ("you asked", who.host.clone().unwrap_or_else(absent)),
        ("by", who.scheme.clone().unwrap_or_else(absent)),
    ] {
        let _ = writeln!(page, "<dt>{name}</dt><dd>{}</dd>", escaped(&value));
    }
    page.push_str("</dl>\n</div>\n<h2>To try</h2>\n<ul>\n");
    for (path, about) in TRY {
        // relative, so that a stripped prefix stays in front
        let link = path.trim_start_matches('/');
        let _ = writeln!(page, "<li><a href=\"{link}\">{path}</a><span>{about}</span></li>");
    }
    page.push_str(
        "<li><a>/ws</a><span>a WebSocket that says everything back</span></li>\n</ul>\n</main>\n</body>\n</html>\n",
    );
    page
}

/// Text that stands in HTML as it is.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for sign in text.chars() {
        match sign {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
    }
    out
}
