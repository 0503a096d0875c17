"""The gradient of a large prediction through shared memory, with Triton's own Python client.

    python client/examples/triton/shared.py [http://127.0.0.1:8000]

Needs a service on this machine that was started with ``LOSSD_SHARED_MEMORY=true``.
"""

import sys
import uuid

import numpy as np

# #region shared
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import shared_memory


def gradient(address, model, prediction, target):
    """Write the inputs into a file of /dev/shm; the gradient takes the prediction's place there."""
    name = f"lossd-{uuid.uuid4()}"
    nbytes = prediction.nbytes + target.nbytes
    memory = shared_memory.create_shared_memory_region(name, f"/{name}", nbytes)
    try:
        shared_memory.set_shared_memory_region(memory, [prediction, target])
        inputs = [InferInput("prediction", prediction.shape, "FP32"), InferInput("target", target.shape, "INT64")]
        inputs[0].set_shared_memory(name, prediction.nbytes)
        inputs[1].set_shared_memory(name, target.nbytes, offset=prediction.nbytes)
        output = InferRequestedOutput("gradient")
        output.set_shared_memory(name, prediction.nbytes)
        with InferenceServerClient(address) as client:
            client.register_system_shared_memory(name, f"/{name}", nbytes)
            client.infer(model, inputs, outputs=[output])
            client.unregister_system_shared_memory(name)
        return shared_memory.get_contents_as_numpy(memory, np.float32, prediction.shape).copy()
    finally:
        shared_memory.destroy_shared_memory_region(memory)


# #endregion

if __name__ == "__main__":
    address = (sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8000").removeprefix("http://").rstrip("/")
    prediction = np.random.default_rng(0).standard_normal((4, 21, 64, 64), np.float32)
    target = np.zeros((4, 64, 64), np.int64)
    found = gradient(address, "cross_entropy", prediction, target)
    exponentials = np.exp(prediction.astype(np.float64))
    expected = exponentials / exponentials.sum(1, keepdims=True)
    expected[:, 0] -= 1
    if np.abs(found - expected / target.size).max() > 1e-9:
        sys.exit("this is not the gradient of cross-entropy")
    print("the gradient of", prediction.nbytes, "bytes, none of which went through a socket")
