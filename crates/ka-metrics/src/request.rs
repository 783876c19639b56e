//! The answer to an HTTP request.

use crate::text::Format;

/// The largest request, in bytes. Prometheus sends less than 1 KiB.
pub const LARGEST: usize = 8 * 1024;
/// The largest number of header lines.
const MOST_HEADERS: usize = 64;

/// An answer, without its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpAnswer {
    /// The metrics.
    Metrics {
        /// The format that the client prefers.
        format: Format,
        /// True if the request was HEAD. Then the response has no body.
        is_head: bool,
    },
    /// The request is not HTTP/1.
    BadRequest,
    /// The path is not /metrics.
    NotFound,
    /// The method is neither GET nor HEAD.
    MethodNotAllowed,
    /// The request has more than [`LARGEST`] bytes, or too many header lines.
    TooLarge,
}

impl HttpAnswer {
    /// Returns the answer to a request. `None` if the request is not complete yet.
    #[must_use]
    pub fn to(bytes: &[u8]) -> Option<Self> {
        let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
        let mut request = httparse::Request::new(&mut headers);
        match request.parse(bytes) {
            Ok(httparse::Status::Complete(_)) => {}
            Ok(httparse::Status::Partial) => return (bytes.len() >= LARGEST).then_some(Self::TooLarge),
            Err(httparse::Error::TooManyHeaders) => return Some(Self::TooLarge),
            Err(_) => return Some(Self::BadRequest),
        }
        let is_head = match request.method {
            Some("GET") => false,
            Some("HEAD") => true,
            _ => return Some(Self::MethodNotAllowed),
        };
        let path = request.path.and_then(|target| target.split('?').next());
        if path != Some("/metrics") {
            return Some(Self::NotFound);
        }
        let accepts = request.headers.iter().filter(|header| header.name.eq_ignore_ascii_case("accept"));
        let accepts: Vec<_> = accepts.filter_map(|header| std::str::from_utf8(header.value).ok()).collect();
        Some(Self::Metrics { format: Format::accepted(&accepts.join(",")), is_head })
    }

    /// Returns the whole response.
    #[must_use]
    pub fn response(self, metrics: impl FnOnce(Format) -> String) -> Vec<u8> {
        let (status, kind, body) = match self {
            Self::Metrics { format, .. } => ("200 OK", format.media_type(), metrics(format)),
            Self::BadRequest => plain("400 Bad Request", "the request is not HTTP/1"),
            Self::NotFound => plain("404 Not Found", "the metrics are at /metrics"),
            Self::MethodNotAllowed => plain("405 Method Not Allowed", "use GET or HEAD"),
            Self::TooLarge => plain("431 Request Header Fields Too Large", "the request is too large"),
        };
        let allow = if self == Self::MethodNotAllowed { "Allow: GET, HEAD\r\n" } else { "" };
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n{allow}Cache-Control: no-store\r\n\
             X-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n",
            body.len()
        );
        let is_head = matches!(self, Self::Metrics { is_head: true, .. });
        if is_head { head.into_bytes() } else { (head + &body).into_bytes() }
    }
}

fn plain(status: &'static str, text: &str) -> (&'static str, &'static str, String) {
    (status, "text/plain; charset=utf-8", format!("{text}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const METRICS: HttpAnswer = HttpAnswer::Metrics { format: Format::Text, is_head: false };

    #[test]
    fn only_get_and_head_of_the_metrics_are_answered_with_metrics() {
        for (request, answer) in [
            ("GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n", METRICS),
            ("GET /metrics HTTP/1.0\r\n\r\n", METRICS),
            ("GET /metrics?a=b HTTP/1.1\r\n\r\n", METRICS),
            ("HEAD /metrics HTTP/1.1\r\n\r\n", HttpAnswer::Metrics { format: Format::Text, is_head: true }),
            (
                "GET /metrics HTTP/1.1\r\naccept: application/openmetrics-text\r\n\r\n",
                HttpAnswer::Metrics { format: Format::OpenMetrics, is_head: false },
            ),
            ("GET / HTTP/1.1\r\n\r\n", HttpAnswer::NotFound),
            ("GET /metrics/ HTTP/1.1\r\n\r\n", HttpAnswer::NotFound),
            ("GET //metrics HTTP/1.1\r\n\r\n", HttpAnswer::NotFound),
            ("POST /metrics HTTP/1.1\r\nContent-Length: 9\r\n\r\n", HttpAnswer::MethodNotAllowed),
            ("OPTIONS * HTTP/1.1\r\n\r\n", HttpAnswer::MethodNotAllowed),
            ("get /metrics HTTP/1.1\r\n\r\n", HttpAnswer::MethodNotAllowed),
            ("GET /metrics HTTP/2.0\r\n\r\n", HttpAnswer::BadRequest),
            ("GET /metrics\r\n\r\n", HttpAnswer::BadRequest),
            ("\u{16}\u{3}\u{1}", HttpAnswer::BadRequest),
        ] {
            assert_eq!(HttpAnswer::to(request.as_bytes()), Some(answer), "{request:?}");
        }
    }

    #[test]
    fn an_incomplete_request_has_no_answer_until_it_is_too_large() {
        let request = "GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n";
        for end in 0..request.len() {
            assert_eq!(HttpAnswer::to(&request.as_bytes()[..end]), None, "{end}");
        }
        let long = format!("GET /metrics HTTP/1.1\r\nA: {}", "a".repeat(LARGEST));
        assert_eq!(HttpAnswer::to(&long.as_bytes()[..LARGEST - 1]), None);
        assert_eq!(HttpAnswer::to(&long.as_bytes()[..LARGEST]), Some(HttpAnswer::TooLarge));
        let many = format!("GET /metrics HTTP/1.1\r\n{}\r\n", "A: a\r\n".repeat(MOST_HEADERS + 1));
        assert_eq!(HttpAnswer::to(many.as_bytes()), Some(HttpAnswer::TooLarge));
    }

    #[test]
    fn the_length_of_the_body_is_right() {
        let text = |_| "x 1\n".to_owned();
        let whole = String::from_utf8(METRICS.response(text)).unwrap();
        assert!(whole.contains("\r\nContent-Length: 4\r\n") && whole.ends_with("\r\n\r\nx 1\n"), "{whole}");
        let head = HttpAnswer::Metrics { format: Format::Text, is_head: true };
        let head = String::from_utf8(head.response(text)).unwrap();
        assert_eq!(whole.strip_prefix(&head), Some("x 1\n"));
        let refused = String::from_utf8(HttpAnswer::MethodNotAllowed.response(text)).unwrap();
        assert!(refused.contains("\r\nAllow: GET, HEAD\r\n"), "{refused}");
    }
}
