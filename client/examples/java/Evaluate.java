import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.time.Duration;
import java.util.Arrays;
import java.util.HashMap;
import java.util.Map;

import com.google.gson.Gson;
import com.google.gson.JsonObject;
import com.google.gson.JsonParser;

import static java.nio.charset.StandardCharsets.UTF_8;

/**
 * A loss and its gradient from Java: a safetensors file out, a safetensors file back, with Gson.
 *
 * <pre>java -cp /usr/share/java/gson.jar client/examples/java/Evaluate.java [http://127.0.0.1:8000]</pre>
 *
 * Needs Java 17 or newer, and Gson: com.google.code.gson:gson, on Debian libgoogle-gson-java. A service that asks for a
 * key gets the one in LOSSD_API_KEY.
 */
public class Evaluate {
  static final String MEDIA_TYPE = "application/vnd.safetensors";
  static final String REQUEST = """
      {"loss": {"name": "focal", "gamma": 2.0}, "outputs": ["loss", "gradient"]}""";

  /** The answer's JSON, and its tensors by name, such as gradient.prediction. */
  record Answer(JsonObject result, Map<String, ByteBuffer> tensors) {
    float[] floats(String name) {
      float[] elements = new float[tensors.get(name).remaining() / 4];
      tensors.get(name).asFloatBuffer().get(elements);
      return elements;
    }
  }

  // #region encode
  /** A tensor by name: its elements in row-major order, little-endian. The dtype is F64, F32, I64, I32, U8 or BOOL. */
  record Tensor(String name, String dtype, long[] shape, byte[] data) {
    static Tensor of(String name, float[] elements, long... shape) {
      ByteBuffer data = ByteBuffer.allocate(4 * elements.length).order(ByteOrder.LITTLE_ENDIAN);
      data.asFloatBuffer().put(elements);
      return new Tensor(name, "F32", shape, data.array());
    }

    static Tensor of(String name, long[] elements, long... shape) {
      ByteBuffer data = ByteBuffer.allocate(8 * elements.length).order(ByteOrder.LITTLE_ENDIAN);
      data.asLongBuffer().put(elements);
      return new Tensor(name, "I64", shape, data.array());
    }
  }

  /**
   * Tensors as a safetensors file: length of the header, header, elements. Give wider elements first; then every tensor
   * starts on a multiple of its element's size.
   */
  static byte[] encode(String request, Tensor... tensors) {
    Map<String, Object> header = new HashMap<>(Map.of("__metadata__", Map.of("request", request)));
    ByteArrayOutputStream data = new ByteArrayOutputStream();
    for (Tensor tensor : tensors) {
      int[] offsets = {data.size(), data.size() + tensor.data.length};
      header.put(tensor.name, Map.of("dtype", tensor.dtype, "shape", tensor.shape, "data_offsets", offsets));
      data.writeBytes(tensor.data);
    }
    String json = new Gson().toJson(header);
    byte[] text = (json + " ".repeat(-json.length() & 7)).getBytes(UTF_8);
    return ByteBuffer.allocate(8 + text.length + data.size()).order(ByteOrder.LITTLE_ENDIAN)
        .putLong(text.length).put(text).put(data.toByteArray()).array();
  }
  // #endregion

  // #region decode
  /** The answer: a safetensors file too, whose result is JSON in a string of the header. */
  static Answer decode(byte[] body) {
    ByteBuffer file = ByteBuffer.wrap(body).order(ByteOrder.LITTLE_ENDIAN);
    byte[] text = new byte[(int) file.getLong()];
    file.get(text);
    JsonObject header = JsonParser.parseString(new String(text, UTF_8)).getAsJsonObject();
    String result = header.remove("__metadata__").getAsJsonObject().get("result").getAsString();
    Map<String, ByteBuffer> tensors = new HashMap<>();
    header.asMap().forEach((name, tensor) -> {
      int[] offsets = new Gson().fromJson(tensor.getAsJsonObject().get("data_offsets"), int[].class);
      ByteBuffer data = file.slice(8 + text.length + offsets[0], offsets[1] - offsets[0]);
      tensors.put(name, data.order(ByteOrder.LITTLE_ENDIAN));
    });
    return new Answer(JsonParser.parseString(result).getAsJsonObject(), tensors);
  }
  // #endregion

  // #region post
  static Answer evaluate(String url, String loss, Tensor... tensors) throws IOException, InterruptedException {
    HttpRequest.Builder request = HttpRequest.newBuilder(URI.create(url + "/v1/evaluate"))
        .header("Content-Type", MEDIA_TYPE)
        .timeout(Duration.ofSeconds(60))
        .POST(BodyPublishers.ofByteArray(encode(loss, tensors)));
    String key = System.getenv("LOSSD_API_KEY");
    if (key != null) request.header("Authorization", "Bearer " + key);
    HttpResponse<byte[]> response = HttpClient.newHttpClient().send(request.build(), BodyHandlers.ofByteArray());
    // A refusal is a JSON document that says what is wrong, where, and how to fix it.
    if (response.statusCode() != 200) throw new IOException(new String(response.body(), UTF_8));
    return decode(response.body());
  }
  // #endregion

  public static void main(String[] arguments) throws Exception {
    String url = arguments.length > 0 ? arguments[0] : "http://127.0.0.1:8000";
    float[] prediction = {2.0f, 1.0f, 0.1f, 0.5f, 2.5f, 0.3f};
    long[] target = {0, 1};
    Answer answer = evaluate(url, REQUEST, Tensor.of("target", target, 2), Tensor.of("prediction", prediction, 2, 3));
    double loss = answer.result.get("loss").getAsDouble();
    float[] gradient = answer.floats("gradient.prediction");
    System.out.println("loss " + loss);
    System.out.println("gradient " + Arrays.toString(gradient));

    // From the definition, mean of -(1 - p)^2 log p with p the softmax at the target: the loss, the gradient's first row.
    double[] expected = {0.0285387, -0.0517822, 0.0368145, 0.0149677};
    boolean right = gradient.length == prediction.length && Math.abs(loss - expected[0]) < 1e-6;
    for (int i = 0; right && i < 3; i++) right = Math.abs(gradient[i] - expected[i + 1]) < 1e-6;
    if (!right) {
      System.err.println("this is not the focal loss");
      System.exit(1);
    }
  }
}
