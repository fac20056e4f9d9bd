//! One recorded request of the original with its whole answer (testdata/original/rest, README beside).

use pinfold_tests::house::root;
use pinfold_tests::raw::{Part, Reply, Request};
use serde_json::Value;

/// What curl sends with `-d`.
const FORM: &str = "application/x-www-form-urlencoded";

pub struct Sample {
    /// File name without its ending: `04-pin`.
    pub name: String,
    pub request: Request,
    pub answer: Reply,
}

impl Sample {
    /// All samples, in the order in which they were made.
    pub fn all() -> Vec<Sample> {
        let folder = root().join("tests/testdata/original/rest");
        let files = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let mut paths: Vec<_> = files.map(|file| file.unwrap().path()).collect();
        paths.sort();
        paths.iter().map(|path| Sample::parse(path)).collect()
    }

    fn parse(path: &std::path::Path) -> Sample {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let text = std::fs::read_to_string(path).unwrap();
        let (asked, answered) = text.split_at(text.find("HTTP/1.1 ").unwrap_or_else(|| panic!("{name}: no answer")));
        let asked = asked.lines().filter_map(|line| line.strip_prefix("> "));
        let request = asked.fold(Request::line(&text.lines().next().unwrap()[2..]), |request, line| {
            if request.target == line.split_once(' ').map_or("", |(_, target)| target) {
                request
            } else {
                with(request, line)
            }
        });
        let files: Vec<(String, Vec<u8>)> = text.lines().filter_map(uploaded).collect();
        let parts: Vec<Part<'_>> = files.iter().map(|(name, data)| Part::file(name, data)).collect();
        let request = if parts.is_empty() { request } else { request.multipart(&parts) };

        let (head, body) = answered.split_once("\n\n").unwrap_or((answered, ""));
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let field = |line: &str| line.split_once(':').map(|(name, value)| (name.to_owned(), value.trim().to_owned()));
        let headers = lines.filter_map(field).collect();
        let (trailers, body): (Vec<&str>, Vec<&str>) =
            body.lines().partition(|line| line.starts_with("X-Stream-Error:"));
        let body: String = body.iter().filter(|line| !line.is_empty()).map(|line| format!("{line}\n")).collect();
        let mut answer = Reply { status, headers, body: body.into_bytes(), ..Reply::default() };
        answer.trailers = trailers.into_iter().filter_map(field).collect();
        answer.is_chunked = answer.header("transfer-encoding") == ["chunked"];
        Sample { name, request, answer }
    }

    pub fn number(&self) -> u32 {
        self.name[..2].parse().unwrap()
    }

    /// The documents of the answer's body.
    pub fn documents(&self) -> Vec<Value> {
        documents(&self.answer)
    }

    pub fn set_documents(&mut self, documents: &[Value]) {
        self.answer.body = documents.iter().flat_map(|document| format!("{document}\n").into_bytes()).collect();
    }
}

pub fn documents(reply: &Reply) -> Vec<Value> {
    let text = reply.text();
    let parse = |line: &str| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    text.lines().filter(|line| !line.is_empty()).map(parse).collect()
}

/// The lines after the first: a header, a JSON body, a form body, or a file (which is put together elsewhere).
fn with(request: Request, line: &str) -> Request {
    if line.starts_with("file=@") {
        return request;
    }
    match line.split_once(": ") {
        Some((name, value)) if !line.starts_with('{') => request.header(name, value),
        _ => request.body(FORM, line),
    }
}

/// Name and content of a file that was uploaded; the CIDs in the answers say what was in it.
fn uploaded(line: &str) -> Option<(String, Vec<u8>)> {
    let file = line.strip_prefix("> file=@")?;
    let (path, name) = file.split_once(";filename=").unwrap_or((file, file));
    let data = match path {
        "hello.txt" => b"hello\n".to_vec(),
        "zeros.bin" => vec![0; 700_000],
        "dir/one.txt" => b"one\n".to_vec(),
        "dir/sub/two.txt" => b"two\n".to_vec(),
        other => panic!("{other}: what was in it?"),
    };
    Some((name.to_owned(), data))
}
