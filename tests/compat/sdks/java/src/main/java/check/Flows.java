package check;

import io.temporal.activity.Activity;
import io.temporal.activity.ActivityCancellationType;
import io.temporal.activity.ActivityExecutionContext;
import io.temporal.activity.ActivityInterface;
import io.temporal.activity.ActivityOptions;
import io.temporal.activity.LocalActivityOptions;
import io.temporal.client.ActivityCompletionException;
import io.temporal.common.RetryOptions;
import io.temporal.common.SearchAttributeKey;
import io.temporal.failure.ApplicationFailure;
import io.temporal.failure.CanceledFailure;
import io.temporal.workflow.Async;
import io.temporal.workflow.CancellationScope;
import io.temporal.workflow.ChildWorkflowStub;
import io.temporal.workflow.Promise;
import io.temporal.workflow.QueryMethod;
import io.temporal.workflow.SignalMethod;
import io.temporal.workflow.UpdateMethod;
import io.temporal.workflow.UpdateValidatorMethod;
import io.temporal.workflow.Workflow;
import io.temporal.workflow.WorkflowInterface;
import io.temporal.workflow.WorkflowMethod;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;

/** The workflows and activities of the check. */
final class Flows {
  static final SearchAttributeKey<String> KEYWORD = SearchAttributeKey.forKeyword("HoldfastKeyword");
  static final SearchAttributeKey<Long> INT = SearchAttributeKey.forLong("HoldfastInt");
  static final Map<String, Where> TOKENS = new ConcurrentHashMap<>();

  record Where(byte[] token, String workflowId, String runId, String activityId) {}

  @ActivityInterface
  public interface Acts {
    int echo(int what);

    int failTwice();

    void failForGood();

    int resumesFromHeartbeat();

    void beat();

    String completedOutside(String mode);
  }

  public static final class ActsImpl implements Acts {
    @Override
    public int echo(int what) {
      return what;
    }

    @Override
    public int failTwice() {
      int attempt = Activity.getExecutionContext().getInfo().getAttempt();
      if (attempt < 3) {
        throw new IllegalStateException("attempt " + attempt);
      }
      return attempt;
    }

    @Override
    public void failForGood() {
      throw ApplicationFailure.newNonRetryableFailure("for good", "ForGood", "a detail");
    }

    @Override
    public int resumesFromHeartbeat() {
      ActivityExecutionContext context = Activity.getExecutionContext();
      if (context.getInfo().getAttempt() == 1) {
        context.heartbeat(42);
        throw new IllegalStateException("after a heartbeat");
      }
      return context.getHeartbeatDetails(Integer.class).orElse(-1);
    }

    @Override
    public void beat() {
      ActivityExecutionContext context = Activity.getExecutionContext();
      try {
        while (true) {
          context.heartbeat("beat");
          Thread.sleep(100);
        }
      } catch (ActivityCompletionException cancelled) {
        throw cancelled;
      } catch (InterruptedException error) {
        throw new IllegalStateException(error);
      }
    }

    @Override
    public String completedOutside(String mode) {
      ActivityExecutionContext context = Activity.getExecutionContext();
      var info = context.getInfo();
      TOKENS.put(mode, new Where(info.getTaskToken(), info.getWorkflowId(), info.getRunId(), info.getActivityId()));
      context.doNotCompleteOnReturn();
      return null;
    }
  }

  static Acts acts() {
    RetryOptions retry =
        RetryOptions.newBuilder()
            .setInitialInterval(Duration.ofMillis(50))
            .setBackoffCoefficient(1)
            .setMaximumAttempts(5)
            .build();
    return Workflow.newActivityStub(
        Acts.class,
        ActivityOptions.newBuilder()
            .setStartToCloseTimeout(Duration.ofSeconds(20))
            .setHeartbeatTimeout(Duration.ofSeconds(2))
            .setCancellationType(ActivityCancellationType.WAIT_CANCELLATION_COMPLETED)
            .setRetryOptions(retry)
            .build());
  }

  /** One workflow for everything that is called once and returns. */
  @WorkflowInterface
  public interface Does {
    @WorkflowMethod
    String run(String what, String argument);
  }

  public static final class DoesImpl implements Does {
    @Override
    public String run(String what, String argument) {
      return switch (what) {
        case "retry" -> String.valueOf(acts().failTwice());
        case "resume" -> String.valueOf(acts().resumesFromHeartbeat());
        case "beat" -> {
          acts().beat();
          yield "";
        }
        case "fail" -> {
          acts().failForGood();
          yield "";
        }
        case "outside" -> acts().completedOutside(argument);
        case "many" -> many();
        case "echo" -> argument;
        case "parent" -> parent();
        case "cancel-child" -> cancelChild();
        case "again" -> again(Integer.parseInt(argument));
        case "timers" -> timers();
        case "local" -> local();
        case "patch" -> patch();
        case "signal-another" -> signalAnother(argument);
        case "cancel-another" -> cancelAnother(argument);
        default -> throw ApplicationFailure.newNonRetryableFailure(what, "Unknown");
      };
    }

    private static String many() {
      List<Promise<Integer>> waiting = new ArrayList<>();
      for (int n = 0; n < 50; n++) {
        waiting.add(Async.function(acts()::echo, n));
      }
      Promise.allOf(waiting).get();
      return String.valueOf(waiting.stream().mapToInt(Promise::get).sum());
    }

    private static String parent() {
      String first = Workflow.newChildWorkflowStub(Does.class).run("echo", "child");
      Counter counter = Workflow.newChildWorkflowStub(Counter.class);
      Promise<Integer> running = Async.function(counter::run, 10);
      Workflow.getWorkflowExecution(counter).get();
      counter.add(5);
      counter.finish();
      return first + " " + running.get();
    }

    private static String cancelChild() {
      ChildWorkflowStub child = Workflow.newUntypedChildWorkflowStub("Counter");
      List<Promise<Integer>> running = new ArrayList<>();
      CancellationScope scope =
          Workflow.newCancellationScope(() -> running.add(child.executeAsync(Integer.class, 0)));
      scope.run();
      child.getExecution().get();
      scope.cancel();
      try {
        running.get(0).get();
        return "not cancelled";
      } catch (Exception error) {
        return error.getCause() instanceof CanceledFailure ? "cancelled" : error.toString();
      }
    }

    private static String again(int left) {
      if (left > 0) {
        Workflow.continueAsNew("again", String.valueOf(left - 1));
      }
      return Workflow.getInfo().getContinuedExecutionRunId().isPresent() ? "again" : "first";
    }

    private static String timers() {
      long began = Workflow.currentTimeMillis();
      Workflow.sleep(100);
      long took = Workflow.currentTimeMillis() - began;
      List<Promise<Void>> long_ = new ArrayList<>();
      CancellationScope scope =
          Workflow.newCancellationScope(() -> long_.add(Workflow.newTimer(Duration.ofHours(1))));
      scope.run();
      scope.cancel();
      try {
        long_.get(0).get();
        return "a cancelled timer fired";
      } catch (CanceledFailure cancelled) {
        return took >= 95 && took < 1000 ? "on time" : "100 ms took " + took;
      }
    }

    private static String local() {
      Acts local =
          Workflow.newLocalActivityStub(
              Acts.class,
              LocalActivityOptions.newBuilder()
                  .setScheduleToCloseTimeout(Duration.ofSeconds(5))
                  .setRetryOptions(
                      RetryOptions.newBuilder()
                          .setInitialInterval(Duration.ofMillis(20))
                          .setBackoffCoefficient(1)
                          .build())
                  .build());
      return String.valueOf(local.failTwice());
    }

    private static String patch() {
      int version = Workflow.getVersion("a-change", Workflow.DEFAULT_VERSION, 3);
      int side = Workflow.sideEffect(Integer.class, () -> 8);
      Workflow.sleep(10);
      return String.valueOf(version + side);
    }

    private static String signalAnother(String id) {
      Counter other = Workflow.newExternalWorkflowStub(Counter.class, id);
      other.add(3);
      other.finish();
      return "sent";
    }

    private static String cancelAnother(String id) {
      Workflow.newUntypedExternalWorkflowStub(id).cancel();
      try {
        Workflow.newUntypedExternalWorkflowStub("there-is-no-such-workflow").signal("add", 1);
        return "no error";
      } catch (Exception error) {
        return error.getClass().getSimpleName();
      }
    }
  }

  @WorkflowInterface
  public interface Counter {
    @WorkflowMethod
    int run(int start);

    @SignalMethod
    void add(int by);

    @SignalMethod
    void finish();

    @QueryMethod
    int total();

    @UpdateMethod
    int addUpdate(int by);

    @UpdateValidatorMethod(updateName = "addUpdate")
    void notNegative(int by);
  }

  public static final class CounterImpl implements Counter {
    private int total;
    private boolean done;

    @Override
    public int run(int start) {
      total += start;
      Workflow.await(() -> done);
      return total;
    }

    @Override
    public void add(int by) {
      total += by;
    }

    @Override
    public void finish() {
      done = true;
    }

    @Override
    public int total() {
      return total;
    }

    @Override
    public int addUpdate(int by) {
      Workflow.sleep(20);
      total += by;
      return total;
    }

    @Override
    public void notNegative(int by) {
      if (by < 0) {
        throw ApplicationFailure.newNonRetryableFailure("negative", "Negative");
      }
    }
  }

  @WorkflowInterface
  public interface Attributes {
    @WorkflowMethod
    void run();

    @SignalMethod
    void finish();
  }

  public static final class AttributesImpl implements Attributes {
    private boolean done;

    @Override
    public void run() {
      Workflow.upsertTypedSearchAttributes(KEYWORD.valueSet("from-workflow"), INT.valueSet(7L));
      Workflow.upsertMemo(Map.of("added", "later"));
      Workflow.await(() -> done);
    }

    @Override
    public void finish() {
      done = true;
    }
  }

  private Flows() {}
}
