//! The REST API as a client sees it: plain requests, whole answers.

use std::collections::BTreeMap;

use pinfold_common::json::{GlobalPinInfoJson, PinJson};
use serde::de::DeserializeOwned;

#[derive(Clone)]
pub struct Rest {
    pub base: String,
    client: reqwest::Client,
}

pub struct Answer {
    pub status: u16,
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

impl Answer {
    pub fn json<T: DeserializeOwned>(&self) -> T {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {} {}", self.status, self.body))
    }

    /// The objects of a stream, one a line.
    pub fn lines<T: DeserializeOwned>(&self) -> Vec<T> {
        let parse = |line: &str| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        self.body.lines().filter(|line| !line.is_empty()).map(parse).collect()
    }
}

impl Rest {
    pub fn new(authority: &str) -> Rest {
        let client = reqwest::Client::builder().timeout(crate::cluster::PATIENCE).build().expect("an HTTP client");
        Rest { base: format!("http://{authority}"), client }
    }

    pub async fn send(&self, method: &str, path: &str) -> Result<Answer, reqwest::Error> {
        let method = reqwest::Method::from_bytes(method.as_bytes()).expect("a method");
        let response = self.client.request(method, format!("{}{path}", self.base)).send().await?;
        Rest::read(response).await
    }

    pub async fn read(response: reqwest::Response) -> Result<Answer, reqwest::Error> {
        let status = response.status().as_u16();
        let header = |(name, value): (&reqwest::header::HeaderName, &reqwest::header::HeaderValue)| {
            (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        let headers = response.headers().iter().map(header).collect();
        Ok(Answer { status, headers, body: response.text().await? })
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send("GET", path).await.unwrap_or_else(|error| panic!("GET {path}: {error}"))
    }

    pub async fn post(&self, path: &str) -> Answer {
        self.send("POST", path).await.unwrap_or_else(|error| panic!("POST {path}: {error}"))
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.send("DELETE", path).await.unwrap_or_else(|error| panic!("DELETE {path}: {error}"))
    }

    /// Adds files by name; the objects of the answer.
    pub async fn add(&self, query: &str, files: Vec<(&str, Vec<u8>)>) -> Answer {
        let mut form = reqwest::multipart::Form::new();
        for (name, data) in files {
            let part = reqwest::multipart::Part::bytes(data).file_name(name.to_owned());
            form = form.part("file", part.mime_str("application/octet-stream").expect("a type"));
        }
        let request = self.client.post(format!("{}/add?{query}", self.base)).multipart(form);
        let response = request.send().await.unwrap_or_else(|error| panic!("POST /add: {error}"));
        Rest::read(response).await.unwrap_or_else(|error| panic!("POST /add: {error}"))
    }

    pub async fn status(&self, cid: &str) -> GlobalPinInfoJson {
        let answer = self.get(&format!("/pins/{cid}")).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.json()
    }

    /// The pinset, by CID.
    pub async fn allocations(&self) -> BTreeMap<String, PinJson> {
        let answer = self.get("/allocations").await;
        assert!(answer.status == 200 || answer.status == 204, "{} {}", answer.status, answer.body);
        let pins: Vec<PinJson> = answer.lines();
        let count = pins.len();
        let by_cid: BTreeMap<String, PinJson> =
            pins.into_iter().map(|pin| (pin.cid.clone().expect("a CID"), pin)).collect();
        assert_eq!(by_cid.len(), count, "a pin is listed twice");
        by_cid
    }
}
