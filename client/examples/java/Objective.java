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
import java.util.List;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

import static java.nio.charset.StandardCharsets.UTF_8;

/**
 * A custom objective of gradient boosting from Java: gradient and second derivative of each row and class.
 *
 * <pre>java client/examples/java/Objective.java [http://127.0.0.1:8000]</pre>
 *
 * Needs Java 17 or newer. A service that asks for a key gets the one in LOSSD_API_KEY.
 */
public class Objective {
  static final String MEDIA_TYPE = "application/vnd.safetensors";
  static final HttpClient HTTP = HttpClient.newHttpClient();

  // #region objective
  /**
   * What XGBoost4J's IObjective.getGradient returns: all gradients, then all second derivatives, each row by row.
   *
   * For LightGBM's C API use form "lightgbm" and layout "class_first": all rows of a class, then those of the next.
   */
  static List<float[]> derivatives(String url, float[][] scores, float[] labels, String form, String layout)
      throws IOException, InterruptedException {
    String request = """
        {"loss": {"name": "cross_entropy", "reduction": "sum"}, "outputs": ["gradient", "hessian"],
         "gradient": {"layout": "%s"}, "hessian": {"form": "%s"}}""".formatted(layout, form);
    byte[] answer = post(url, encode(request.replaceAll("\\s+", " "), scores, labels));
    ByteBuffer file = ByteBuffer.wrap(answer).order(ByteOrder.LITTLE_ENDIAN);
    byte[] header = new byte[(int) file.getLong()];
    file.get(header);
    String text = new String(header, UTF_8);
    return List.of(tensor(file, text, "gradient.prediction"), tensor(file, text, "hessian.prediction"));
  }
  // #endregion

  /** The elements of a tensor of the answer. The buffer is at the end of the header. */
  static float[] tensor(ByteBuffer file, String header, String name) {
    Matcher offsets = Pattern.compile("\"" + name + "\": *\\{[^}]*\"data_offsets\": *\\[(\\d+), *(\\d+)\\]").matcher(header);
    if (!offsets.find()) throw new IllegalStateException("no " + name + " in " + header);
    int begin = Integer.parseInt(offsets.group(1)), end = Integer.parseInt(offsets.group(2));
    float[] elements = new float[(end - begin) / 4];
    file.slice(file.position() + begin, end - begin).order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer().get(elements);
    return elements;
  }

  /** Scores and labels as a safetensors file: length of the header, header, elements. */
  static byte[] encode(String request, float[][] scores, float[] labels) {
    int rows = labels.length, classes = scores[0].length, wide = 8 * rows, all = wide + 4 * rows * classes;
    String header = """
        {"__metadata__": {"request": "%s"},
         "target": {"dtype": "I64", "shape": [%d], "data_offsets": [0, %d]},
         "prediction": {"dtype": "F32", "shape": [%d, %d], "data_offsets": [%d, %d]}}"""
        .formatted(request.replace("\"", "\\\""), rows, wide, rows, classes, wide, all);
    byte[] text = (header + " ".repeat(-header.length() & 7)).getBytes(UTF_8);
    ByteBuffer file = ByteBuffer.allocate(8 + text.length + all).order(ByteOrder.LITTLE_ENDIAN);
    file.putLong(text.length).put(text);
    for (float label : labels) file.putLong((long) label);
    for (float[] row : scores) for (float score : row) file.putFloat(score);
    return file.array();
  }

  static byte[] post(String url, byte[] body) throws IOException, InterruptedException {
    HttpRequest.Builder request = HttpRequest.newBuilder(URI.create(url + "/v1/evaluate"))
        .header("Content-Type", MEDIA_TYPE)
        .timeout(Duration.ofSeconds(60))
        .POST(BodyPublishers.ofByteArray(body));
    String key = System.getenv("LOSSD_API_KEY");
    if (key != null) request.header("Authorization", "Bearer " + key);
    HttpResponse<byte[]> response = HTTP.send(request.build(), BodyHandlers.ofByteArray());
    if (response.statusCode() != 200) throw new IOException(new String(response.body(), UTF_8));
    return response.body();
  }

  public static void main(String[] arguments) throws Exception {
    String url = arguments.length > 0 ? arguments[0] : "http://127.0.0.1:8000";
    float[][] scores = {{1, 0, -1}, {0, 2, 1}};
    float[] labels = {0, 2};
    List<float[]> rows = derivatives(url, scores, labels, "xgboost", "as_input");
    List<float[]> columns = derivatives(url, scores, labels, "lightgbm", "class_first");
    System.out.println("gradient " + Arrays.toString(rows.get(0)));
    System.out.println("hessian " + Arrays.toString(rows.get(1)));
    System.out.println("hessian, class by class " + Arrays.toString(columns.get(1)));

    // From the definition: p - y, and 2p(1 - p) in XGBoost, 3/2 p(1 - p) in LightGBM, with p the softmax.
    boolean right = true;
    for (int i = 0; i < 2; i++) {
      double total = 0;
      for (float score : scores[i]) total += Math.exp(score);
      for (int k = 0; k < 3; k++) {
        double p = Math.exp(scores[i][k]) / total, y = labels[i] == k ? 1 : 0;
        right &= Math.abs(rows.get(0)[3 * i + k] - (p - y)) < 1e-6;
        right &= Math.abs(rows.get(1)[3 * i + k] - 2 * p * (1 - p)) < 1e-6;
        right &= Math.abs(columns.get(1)[2 * k + i] - 1.5 * p * (1 - p)) < 1e-6;
      }
    }
    if (!right) {
      System.err.println("these are not the derivatives of a softmax");
      System.exit(1);
    }
  }
}
