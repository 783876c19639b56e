//! Answers an HTTP request for the metrics, which a client may send in several pieces. The answer must not depend on
//! the pieces, and the answer to a plain request must equal that of a second parser.
//!
//! The first two bytes are the length of the first piece. Then comes the request.

#![no_main]

use ka_fuzz::allocations;
use ka_fuzz::input::Input;
use ka_metrics::request::{HttpAnswer, LARGEST};
use ka_metrics::text::{Format, text};
use ka_reach::watch::{Metrics, WatchSource};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let first = usize::from(input.short());
    let bytes = input.bytes(LARGEST);
    let answer = allocations::within(4096 + 4 * bytes.len(), || HttpAnswer::to(bytes));
    let Some(early) = bytes.get(..first).and_then(HttpAnswer::to) else { return check(bytes, answer) };
    assert_eq!(Some(early), answer, "the answer came after {first} bytes");
});

fn check(bytes: &[u8], answer: Option<HttpAnswer>) {
    assert!(answer.is_some() || bytes.len() < LARGEST, "no answer to the largest request");
    if let Some(expected) = expected(bytes) {
        assert_eq!(answer, Some(expected));
    }
    let Some(answer) = answer else { return };
    let request = String::from_utf8_lossy(bytes).to_ascii_lowercase();
    let mut is_head = false;
    if let HttpAnswer::Metrics { format, is_head: head } = answer {
        is_head = head;
        assert!(request.contains(if head { "head /metrics" } else { "get /metrics" }), "{request}");
        assert!(format == Format::Text || request.contains("application/openmetrics-text"), "{request}");
    }
    let body = |format| text(&Metrics::new(WatchSource::Ebpf), format).unwrap();
    let response = String::from_utf8(answer.response(body)).unwrap();
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap();
    let length: usize = length.parse().unwrap();
    assert!(if is_head { body.is_empty() && length > 0 } else { body.len() == length }, "{response}");
}

/// Returns the answer to a request, if it is a complete one with only ordinary characters. RFC 9112
fn expected(bytes: &[u8]) -> Option<HttpAnswer> {
    let (head, _) = std::str::from_utf8(bytes).ok()?.split_once("\r\n\r\n")?;
    let mut lines = head.split("\r\n");
    let words: Vec<_> = lines.next()?.split(' ').collect();
    let [method, target, "HTTP/1.0" | "HTTP/1.1"] = *words else { return None };
    let is_word = |text: &str, others: &str| {
        !text.is_empty() && text.chars().all(|char| char.is_ascii_alphanumeric() || others.contains(char))
    };
    let headers: Vec<_> = lines.map(|line| line.split_once(": ")).collect::<Option<_>>()?;
    let is_header = |(name, value): &(&str, &str)| is_word(name, "-") && is_word(value, " -/.;,=*");
    let is_plain = is_word(method, "") && is_word(target, "/?=.-_*") && headers.iter().all(is_header);
    if !is_plain || headers.len() > 64 || headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("accept"))
    {
        return None;
    }
    let path = target.find('?').map_or(target, |end| &target[..end]);
    Some(match method {
        "GET" | "HEAD" if path == "/metrics" => {
            HttpAnswer::Metrics { format: Format::Text, is_head: method == "HEAD" }
        }
        "GET" | "HEAD" => HttpAnswer::NotFound,
        _ => HttpAnswer::MethodNotAllowed,
    })
}
