"""A loss and its gradient by the Open Inference Protocol, with Triton's own Python client.

    python client/examples/triton/evaluate.py [http://127.0.0.1:8000]

Needs ``tritonclient[http]``, which takes an address without ``http://``.
"""

import sys

import numpy as np

# #region infer
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput


def evaluate(address, model, parameters, **arrays):
    """A loss and its gradient; every loss is a model."""
    inputs = []
    for name, array in arrays.items():
        tensor = InferInput(name, array.shape, {"float32": "FP32", "int64": "INT64"}[array.dtype.name])
        inputs.append(tensor.set_data_from_numpy(array))
    outputs = [InferRequestedOutput("loss"), InferRequestedOutput("gradient")]
    with InferenceServerClient(address) as client:
        answer = client.infer(model, inputs, outputs=outputs, parameters=parameters)
    return answer.as_numpy("loss").item(), answer.as_numpy("gradient")


# #endregion

if __name__ == "__main__":
    address = (sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8000").removeprefix("http://").rstrip("/")
    prediction = np.array([[2.0, 1.0, 0.1], [0.5, 2.5, 0.3]], np.float32)
    target = np.array([0, 1])
    loss, gradient = evaluate(address, "focal", {"gamma": 2.0}, prediction=prediction, target=target)
    print("loss", loss)
    print("gradient", gradient.ravel().tolist())

    # From the definition, mean of -(1 - p)^2 log p with p the softmax at the target.
    if abs(loss - 0.0285387) > 1e-6 or np.abs(gradient[0] - [-0.0517822, 0.0368145, 0.0149677]).max() > 1e-6:
        sys.exit("this is not the focal loss")
