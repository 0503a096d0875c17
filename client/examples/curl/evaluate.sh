#!/usr/bin/env bash
# A loss, its gradient and metrics with curl: once as JSON, once as binary safetensors.
#
#     client/examples/curl/evaluate.sh [http://127.0.0.1:8000]
#
# Needs curl 7.87 or newer. A service that asks for a key gets the one in LOSSD_API_KEY.
set -euo pipefail
url=${1:-http://127.0.0.1:8000}
lossd=(curl --silent --show-error --fail-with-body --max-time 60)
if [[ -n ${LOSSD_API_KEY:-} ]]; then
  lossd+=(--header "Authorization: Bearer $LOSSD_API_KEY")
fi

echo "JSON:"
# #region json
"${lossd[@]}" "$url/v1/evaluate" --json '{
  "loss": {"name": "focal", "gamma": 2.0},
  "inputs": {"prediction": [[2.0, 1.0, 0.1], [0.5, 2.5, 0.3]], "target": [0, 1]}
}'
# #endregion
echo

# A safetensors file: 8 bytes of header length (little-endian), the header, the tensors' bytes. Any program that can save
# one will do; here is the mean squared error of [1.0, 2.0] and [1.0, 4.0], by hand.
header='{"prediction":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"target":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}'
file=$(mktemp)
trap 'rm -f "$file"' EXIT
{
  printf "\\x$(printf %02x ${#header})\\0\\0\\0\\0\\0\\0\\0%s" "$header"
  printf '\0\0\x80\x3f' # 1.0 as float32
  printf '\0\0\0\x40'   # 2.0
  printf '\0\0\x80\x3f' # 1.0
  printf '\0\0\x80\x40' # 4.0
} >"$file"

# The file holds no request, so the query does. Accept: application/json asks for the answer as text.
echo "safetensors:"
# #region file
"${lossd[@]}" --url-query 'request={"loss":{"name":"mse"},"outputs":["loss","gradient"]}' "$url/v1/evaluate" \
  --header 'Content-Type: application/vnd.safetensors' --header 'Accept: application/json' --data-binary "@$file"
# #endregion
echo
