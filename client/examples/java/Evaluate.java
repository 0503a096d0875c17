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
  /** Scores (one row a sample) and class indices as a safetensors file: length of the header, header, elements. */
  static ByteBuffer encode(float[] prediction, long[] target) {
    int rows = target.length, wide = 8 * rows, all = wide + 4 * prediction.length;
    // The wider elements first, and spaces behind the header: every tensor starts on a multiple of its element's size.
    String header = """
        {"__metadata__": {"request": "%s"},
         "target": {"dtype": "I64", "shape": [%d], "data_offsets": [0, %d]},
         "prediction": {"dtype": "F32", "shape": [%d, %d], "data_offsets": [%d, %d]}}"""
        .formatted(REQUEST.replace("\"", "\\\""), rows, wide, rows, prediction.length / rows, wide, all);
    byte[] text = (header + " ".repeat(-header.length() & 7)).getBytes(UTF_8);
    ByteBuffer file = ByteBuffer.allocate(8 + text.length + all).order(ByteOrder.LITTLE_ENDIAN);
    file.putLong(text.length).put(text);
    for (long index : target) file.putLong(index);
    for (float score : prediction) file.putFloat(score);
    return file.flip();
  }
  // #endregion

  // #region decode
  /** The answer: a safetensors file too. Its one tensor is the gradient; the loss stands in the header. */
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
  static Answer evaluate(String url, float[] prediction, long[] target) throws IOException, InterruptedException {
    HttpRequest.Builder request = HttpRequest.newBuilder(URI.create(url + "/v1/evaluate"))
        .header("Content-Type", MEDIA_TYPE)
        .timeout(Duration.ofSeconds(60))
        .POST(BodyPublishers.ofByteArray(encode(prediction, target).array()));
    String key = System.getenv("LOSSD_API_KEY");
    if (key != null) request.header("Authorization", "Bearer " + key);
    HttpResponse<byte[]> response = HttpClient.newHttpClient().send(request.build(), BodyHandlers.ofByteArray());
    // A refusal is a JSON document that says what is wrong, where, and how to mend it.
    if (response.statusCode() != 200) throw new IOException(new String(response.body(), UTF_8));
    return decode(response.body());
  }
  // #endregion

  public static void main(String[] arguments) throws Exception {
    String url = arguments.length > 0 ? arguments[0] : "http://127.0.0.1:8000";
    float[] prediction = {2.0f, 1.0f, 0.1f, 0.5f, 2.5f, 0.3f};
    long[] target = {0, 1};
    Answer answer = evaluate(url, prediction, target);
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
