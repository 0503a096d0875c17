//! A loss and its gradient from Rust: a safetensors file out, a safetensors file back, with serde_json.
//!
//!     cargo run --manifest-path client/examples/rust/Cargo.toml -- [http://127.0.0.1:8000]
//!
//! Needs Rust 1.70 or newer. A service that asks for a key gets the one in LOSSD_API_KEY. HTTP is spelled out here, which
//! is enough for a service in reach; behind https, use an HTTP crate and keep `encode` and `decode`.

use std::collections::HashMap;
use std::error::Error;
use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::{json, Map, Value};

const REQUEST: &str = r#"{"loss": {"name": "focal", "gamma": 2.0}, "outputs": ["loss", "gradient"]}"#;

// #region encode
/// A tensor by name: its elements in row-major order, little-endian. The dtype is F64, F32, I64, I32, U8 or BOOL.
struct Tensor<'a> {
    name: &'a str,
    dtype: &'a str,
    shape: &'a [usize],
    data: Vec<u8>,
}

/// Tensors as a safetensors file: length of the header, header, elements. Give wider elements first; then every tensor
/// starts on a multiple of its element's size.
fn encode(request: &str, tensors: &[Tensor]) -> Vec<u8> {
    let mut header = json!({"__metadata__": {"request": request}});
    let mut begin = 0;
    for Tensor { name, dtype, shape, data } in tensors {
        let end = begin + data.len();
        header[*name] = json!({"dtype": dtype, "shape": shape, "data_offsets": [begin, end]});
        begin = end;
    }
    let mut header = header.to_string();
    header += &" ".repeat(header.len().wrapping_neg() % 8);
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.bytes());
    file.extend(tensors.iter().flat_map(|tensor| &tensor.data));
    file
}
// #endregion

// #region decode
/// The answer's JSON, and its tensors' bytes by name, such as gradient.prediction.
type Answer = (Value, HashMap<String, Vec<u8>>);

/// The answer: a safetensors file too, whose result is JSON in a string of the header.
fn decode(body: &[u8]) -> Result<Answer, Box<dyn Error>> {
    let length = u64::from_le_bytes(body.get(..8).ok_or("the answer is too short")?.try_into()?) as usize;
    let mut header: Map<String, Value> =
        serde_json::from_slice(body[8..].get(..length).ok_or("the answer is cut off")?)?;
    let metadata = header.remove("__metadata__").unwrap_or_default();
    let result = serde_json::from_str(metadata["result"].as_str().ok_or("no result in the answer")?)?;
    let mut tensors = HashMap::new();
    for (name, tensor) in header {
        let [begin, end]: [usize; 2] = serde_json::from_value(tensor["data_offsets"].clone())?;
        tensors.insert(name, body[8 + length..].get(begin..end).ok_or("the answer is cut off")?.to_vec());
    }
    Ok((result, tensors))
}
// #endregion

// #region post
fn evaluate(url: &str, request: &str, tensors: &[Tensor]) -> Result<Answer, Box<dyn Error>> {
    let address = format!("{url}/v1/evaluate");
    let place = address.strip_prefix("http://").and_then(|rest| rest.split_once('/'));
    let (host, path) = place.ok_or("the address must start with http://")?;
    let key = std::env::var("LOSSD_API_KEY").map(|key| format!("Authorization: Bearer {key}\r\n")).unwrap_or_default();
    let file = encode(request, tensors);
    let mut socket = TcpStream::connect(host)?;
    // To HTTP/1.0 the answer comes in one piece, and ends where the connection does.
    write!(
        socket,
        "POST /{path} HTTP/1.0\r\nHost: {host}\r\nContent-Type: application/vnd.safetensors\r\n\
         Content-Length: {}\r\n{key}\r\n",
        file.len()
    )?;
    socket.write_all(&file)?;
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer)?;
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").ok_or("the answer is not HTTP")?;
    let (head, body) = (&answer[..end], &answer[end + 4..]);
    // A refusal is a JSON document that says what is wrong, where, and how to fix it.
    if head.split(|byte| *byte == b' ').nth(1) != Some(b"200") {
        return Err(String::from_utf8_lossy(body).into());
    }
    decode(body)
}
// #endregion

fn run() -> Result<(), Box<dyn Error>> {
    let url = std::env::args().nth(1).unwrap_or("http://127.0.0.1:8000".into());
    let (prediction, target) = ([2.0f32, 1.0, 0.1, 0.5, 2.5, 0.3], [0i64, 1]);
    let scores = prediction.iter().flat_map(|score| score.to_le_bytes()).collect();
    let classes = target.iter().flat_map(|class| class.to_le_bytes()).collect();
    let tensors = [
        Tensor { name: "target", dtype: "I64", shape: &[2], data: classes },
        Tensor { name: "prediction", dtype: "F32", shape: &[2, 3], data: scores },
    ];
    let (result, tensors) = evaluate(&url, REQUEST, &tensors)?;
    let loss = result["loss"].as_f64().ok_or("the loss is no finite number")?;
    let elements = tensors.get("gradient.prediction").ok_or("no gradient in the answer")?.chunks_exact(4);
    let gradient: Vec<f32> = elements.map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect();
    println!("loss {loss}");
    println!("gradient {gradient:?}");

    // From the definition, mean of -(1 - p)^2 log p with p the softmax at the target: the loss, the gradient's first row.
    let near = |found: f64, expected: f64| (found - expected).abs() < 1e-6;
    let row = [-0.0517822, 0.0368145, 0.0149677];
    let right =
        near(loss, 0.0285387) && gradient.iter().zip(row).all(|(&found, expected)| near(found.into(), expected));
    if !right || gradient.len() != prediction.len() {
        return Err("this is not the focal loss".into());
    }
    Ok(())
}

fn main() {
    if let Err(error) = run() {
        eprintln!("{error}");
        std::process::exit(1);
    }
}
