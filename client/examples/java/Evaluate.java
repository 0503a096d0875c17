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
import java.util.regex.Matcher;
import java.util.regex.Pattern;

import static java.nio.charset.StandardCharsets.UTF_8;

/**
 * A loss and its gradient from Java: a safetensors file out, a safetensors file back, no dependency.
 *
 * <pre>java client/examples/java/Evaluate.java [http://127.0.0.1:8000]</pre>
 *
 * Needs Java 17 or newer. A service that asks for a key gets the one in LOSSD_API_KEY.
 */
public class Evaluate {
  static final String MEDIA_TYPE = "application/vnd.safetensors";
  static final String REQUEST = """
      {"loss": {"name": "focal", "gamma": 2.0}, "outputs": ["loss", "gradient"]}""";

  record Answer(double loss, float[] gradient) {}

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
    StringBuilder header = new StringBuilder("{\"__metadata__\": {\"request\": \"%s\"}".formatted(
        request.replace("\\", "\\\\").replace("\"", "\\\"")));
    ByteArrayOutputStream data = new ByteArrayOutputStream();
    for (Tensor tensor : tensors) {
      header.append(", \"%s\": {\"dtype\": \"%s\", \"shape\": %s, \"data_offsets\": [%d, %d]}".formatted(tensor.name,
          tensor.dtype, Arrays.toString(tensor.shape), data.size(), data.size() + tensor.data.length));
      data.writeBytes(tensor.data);
    }
    header.append("}");
    header.append(" ".repeat(-header.length() & 7));
    byte[] text = header.toString().getBytes(UTF_8);
    return ByteBuffer.allocate(8 + text.length + data.size()).order(ByteOrder.LITTLE_ENDIAN)
        .putLong(text.length).put(text).put(data.toByteArray()).array();
  }
  // #endregion

  // #region decode
  /** The answer: a safetensors file too. Its one tensor is the gradient; the loss is in the header. */
  static Answer decode(byte[] body) {
    ByteBuffer file = ByteBuffer.wrap(body).order(ByteOrder.LITTLE_ENDIAN);
    byte[] text = new byte[(int) file.getLong()];
    file.get(text);
    // The result is JSON inside a string of the header, hence the backslashes. A JSON library would read all of it.
    Matcher loss = Pattern.compile("\\\\\"loss\\\\\": *([^,}]+)").matcher(new String(text, UTF_8));
    if (!loss.find()) throw new IllegalStateException("no loss in " + new String(text, UTF_8));
    float[] gradient = new float[file.remaining() / 4];
    file.asFloatBuffer().get(gradient);
    return new Answer(Double.parseDouble(loss.group(1)), gradient);
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
    System.out.println("loss " + answer.loss);
    System.out.println("gradient " + Arrays.toString(answer.gradient));

    // From the definition, mean of -(1 - p)^2 log p with p the softmax at the target: the loss, the gradient's first row.
    double[] expected = {0.0285387, -0.0517822, 0.0368145, 0.0149677};
    boolean right = answer.gradient.length == prediction.length && Math.abs(answer.loss - expected[0]) < 1e-6;
    for (int i = 0; right && i < 3; i++) right = Math.abs(answer.gradient[i] - expected[i + 1]) < 1e-6;
    if (!right) {
      System.err.println("this is not the focal loss");
      System.exit(1);
    }
  }
}
