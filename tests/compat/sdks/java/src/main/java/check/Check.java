package check;

import check.Flows.Attributes;
import check.Flows.Counter;
import check.Flows.Does;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.temporal.api.common.v1.WorkflowExecution;
import io.temporal.api.enums.v1.IndexedValueType;
import io.temporal.api.enums.v1.WorkflowExecutionStatus;
import io.temporal.api.enums.v1.WorkflowIdConflictPolicy;
import io.temporal.api.enums.v1.WorkflowIdReusePolicy;
import io.temporal.api.operatorservice.v1.AddSearchAttributesRequest;
import io.temporal.api.workflowservice.v1.CountWorkflowExecutionsRequest;
import io.temporal.api.workflowservice.v1.DescribeWorkflowExecutionRequest;
import io.temporal.api.workflowservice.v1.DescribeWorkflowExecutionResponse;
import io.temporal.api.workflowservice.v1.ResetWorkflowExecutionRequest;
import io.temporal.client.ActivityCompletionException;
import io.temporal.client.UpdateOptions;
import io.temporal.client.WithStartWorkflowOperation;
import io.temporal.client.WorkflowClient;
import io.temporal.client.WorkflowExecutionAlreadyStarted;
import io.temporal.client.WorkflowFailedException;
import io.temporal.client.WorkflowNotFoundException;
import io.temporal.client.WorkflowOptions;
import io.temporal.client.WorkflowStub;
import io.temporal.client.WorkflowUpdateException;
import io.temporal.client.WorkflowUpdateStage;
import io.temporal.common.SearchAttributes;
import io.temporal.failure.ActivityFailure;
import io.temporal.failure.ApplicationFailure;
import io.temporal.failure.CanceledFailure;
import io.temporal.failure.TerminatedFailure;
import io.temporal.failure.TimeoutFailure;
import io.temporal.serviceclient.OperatorServiceStubs;
import io.temporal.serviceclient.OperatorServiceStubsOptions;
import io.temporal.serviceclient.WorkflowServiceStubs;
import io.temporal.serviceclient.WorkflowServiceStubsOptions;
import io.temporal.worker.WorkerFactory;
import java.time.Duration;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.Objects;
import java.util.UUID;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;

/** Temporal's Java SDK against a server: one line a check, exit 1 if one failed. */
public final class Check {
  interface Body {
    void run() throws Exception;
  }

  private final WorkflowServiceStubs service;
  private final WorkflowClient client;
  private final String queue = "java-" + UUID.randomUUID();
  private final Map<String, Body> checks = new LinkedHashMap<>();
  private int serial;

  private Check(String address) {
    service =
        WorkflowServiceStubs.newServiceStubs(WorkflowServiceStubsOptions.newBuilder().setTarget(address).build());
    client = WorkflowClient.newInstance(service);
    checks.put("activity-retry", () -> same(does("retry", ""), "3"));
    checks.put("activity-heartbeat-details", () -> same(does("resume", ""), "42"));
    checks.put("activity-failure", this::activityFailure);
    checks.put("activity-cancel-heartbeat", this::activityCancel);
    checks.put("activity-fan-out", () -> same(does("many", ""), "1225"));
    checks.put("signal-query", this::signalQuery);
    checks.put("signal-with-start", this::signalWithStart);
    checks.put("update", this::update);
    checks.put("update-with-start", this::updateWithStart);
    checks.put("child", () -> same(does("parent", ""), "child 15"));
    checks.put("child-cancel", () -> same(does("cancel-child", ""), "cancelled"));
    checks.put("continue-as-new", () -> same(does("again", "3"), "again"));
    checks.put("timers", () -> same(does("timers", ""), "on time"));
    checks.put("local-activity", () -> same(does("local", ""), "3"));
    checks.put("search-attributes", this::searchAttributes);
    checks.put("memo", this::memo);
    checks.put("describe", this::describe);
    checks.put("terminate", this::terminate);
    checks.put("time-out", this::timeOut);
    checks.put("already-started", this::alreadyStarted);
    checks.put("reset", this::reset);
    checks.put("patch", () -> same(does("patch", ""), "11"));
    checks.put("async-completion", this::asyncCompletion);
    checks.put("external-workflow", this::externalWorkflow);
  }

  private static void same(Object got, Object want) {
    if (!Objects.equals(got, want)) {
      throw new AssertionError(got + " instead of " + want);
    }
  }

  private static void yes(boolean what, Object otherwise) {
    if (!what) {
      throw new AssertionError(String.valueOf(otherwise));
    }
  }

  private static <E extends Throwable> E fails(Class<E> kind, Body body) {
    try {
      body.run();
    } catch (Throwable error) {
      if (kind.isInstance(error)) {
        return kind.cast(error);
      }
      throw new AssertionError("not a " + kind.getSimpleName(), error);
    }
    throw new AssertionError("no " + kind.getSimpleName());
  }

  private static void until(String what, Callable<Boolean> body) throws Exception {
    long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(10);
    while (!body.call()) {
      yes(System.nanoTime() < deadline, "waited 10 s for " + what);
      Thread.sleep(20);
    }
  }

  private WorkflowOptions.Builder options() {
    return WorkflowOptions.newBuilder().setTaskQueue(queue).setWorkflowId(queue + "-" + ++serial);
  }

  private WorkflowStub start(String type, WorkflowOptions.Builder options, Object... arguments) {
    WorkflowStub stub = client.newUntypedWorkflowStub(type, options.build());
    stub.start(arguments);
    return stub;
  }

  private String does(String what, String argument) {
    return start("Does", options(), what, argument).getResult(String.class);
  }

  private DescribeWorkflowExecutionResponse described(WorkflowStub stub) {
    return service
        .blockingStub()
        .describeWorkflowExecution(
            DescribeWorkflowExecutionRequest.newBuilder()
                .setNamespace("default")
                .setExecution(stub.getExecution())
                .build());
  }

  private WorkflowExecutionStatus status(WorkflowStub stub) {
    return described(stub).getWorkflowExecutionInfo().getStatus();
  }

  private int total(WorkflowStub stub) {
    return stub.query("total", Integer.class);
  }

  private void finish(WorkflowStub stub, int want) {
    stub.signal("finish");
    same(stub.getResult(Integer.class), want);
  }

  private void activityFailure() {
    var error = fails(WorkflowFailedException.class, () -> does("fail", ""));
    yes(error.getCause() instanceof ActivityFailure, error.getCause());
    var cause = (ApplicationFailure) error.getCause().getCause();
    same(cause.getType() + " " + cause.getDetails().get(String.class), "ForGood a detail");
  }

  private void activityCancel() throws Exception {
    WorkflowStub stub = start("Does", options(), "beat", "");
    until(
        "a heartbeat",
        () -> {
          var pending = described(stub).getPendingActivitiesList();
          return pending.size() == 1 && pending.get(0).hasHeartbeatDetails();
        });
    stub.cancel();
    var error = fails(WorkflowFailedException.class, () -> stub.getResult(String.class));
    yes(error.getCause() instanceof CanceledFailure, error.getCause());
    same(status(stub), WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_CANCELED);
  }

  private void signalQuery() {
    WorkflowStub stub = start("Counter", options(), 0);
    stub.signal("add", 2);
    stub.signal("add", 3);
    same(total(stub), 5);
    fails(RuntimeException.class, () -> stub.query("no-such-query", Integer.class));
    yes(stub.query("__stack_trace", String.class) != null, "no stack trace");
    finish(stub, 5);
    same(total(stub), 5);
  }

  private void signalWithStart() {
    var options = options().build();
    WorkflowStub one = client.newUntypedWorkflowStub("Counter", options);
    WorkflowStub two = client.newUntypedWorkflowStub("Counter", options);
    one.signalWithStart("add", new Object[] {4}, new Object[] {0});
    two.signalWithStart("add", new Object[] {4}, new Object[] {0});
    same(one.getExecution(), two.getExecution());
    finish(two, 8);
  }

  private static UpdateOptions<Integer> accepted(String id) {
    return UpdateOptions.newBuilder(Integer.class)
        .setUpdateName("addUpdate")
        .setUpdateId(id)
        .setWaitForStage(WorkflowUpdateStage.ACCEPTED)
        .build();
  }

  private void update() throws Exception {
    WorkflowStub stub = start("Counter", options(), 0);
    same(stub.update("addUpdate", Integer.class, 5), 5);
    var refused = fails(WorkflowUpdateException.class, () -> stub.update("addUpdate", Integer.class, -1));
    yes(String.valueOf(refused.getCause()).contains("negative"), refused.getCause());
    same(stub.startUpdate(accepted("mine"), 2).getResultAsync().get(), 7);
    same(stub.startUpdate(accepted("mine"), 2).getResultAsync().get(), 7);
    same(stub.getUpdateHandle("mine", Integer.class).getResultAsync().get(), 7);
    finish(stub, 7);
    fails(WorkflowNotFoundException.class, () -> stub.update("addUpdate", Integer.class, 1));
  }

  private void updateWithStart() {
    var options =
        options()
            .setWorkflowIdConflictPolicy(WorkflowIdConflictPolicy.WORKFLOW_ID_CONFLICT_POLICY_USE_EXISTING)
            .build();
    WorkflowStub stub = null;
    for (int want : new int[] {101, 102}) {
      Counter counter = client.newWorkflowStub(Counter.class, options);
      var started = new WithStartWorkflowOperation<>(counter::run, 100);
      var update =
          UpdateOptions.newBuilder(Integer.class)
              .setUpdateName("addUpdate")
              .setWaitForStage(WorkflowUpdateStage.COMPLETED)
              .build();
      same(WorkflowClient.executeUpdateWithStart(counter::addUpdate, 1, update, started), want);
      stub = WorkflowStub.fromTyped(counter);
    }
    finish(stub, 102);
  }

  private void searchAttributes() throws Exception {
    var options = options();
    options.setTypedSearchAttributes(SearchAttributes.newBuilder().set(Flows.KEYWORD, "from-start").build());
    WorkflowStub stub = start("Attributes", options);
    String query =
        "HoldfastKeyword = 'from-workflow' AND HoldfastInt > 6 AND WorkflowId = '"
            + stub.getExecution().getWorkflowId()
            + "'";
    until("the upsert", () -> client.listExecutions(query).count() == 1);
    var counting =
        CountWorkflowExecutionsRequest.newBuilder().setNamespace("default").setQuery(query).build();
    same(service.blockingStub().countWorkflowExecutions(counting).getCount(), 1L);
    same(stub.describe().getTypedSearchAttributes().get(Flows.KEYWORD), "from-workflow");
    stub.signal("finish");
    stub.getResult(Void.class);
  }

  private void memo() {
    WorkflowStub stub = start("Attributes", options().setMemo(Map.of("first", "one")));
    stub.signal("finish");
    stub.getResult(Void.class);
    var found = stub.describe();
    same(found.getMemo("first", String.class) + " " + found.getMemo("added", String.class), "one later");
  }

  private void describe() {
    var options =
        options().setStaticSummary("a summary").setWorkflowExecutionTimeout(Duration.ofHours(1));
    WorkflowStub stub = start("Counter", options, 0);
    var found = stub.describe();
    same(found.getWorkflowType() + " " + found.getTaskQueue(), "Counter " + queue);
    same(found.getStaticSummary(), "a summary");
    stub.terminate("described");
  }

  private void terminate() {
    WorkflowStub stub = start("Counter", options(), 0);
    stub.terminate("enough", "a detail");
    var error = fails(WorkflowFailedException.class, () -> stub.getResult(Integer.class));
    yes(error.getCause() instanceof TerminatedFailure, error.getCause());
    fails(WorkflowNotFoundException.class, () -> stub.signal("add", 1));
    same(status(stub), WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_TERMINATED);
  }

  private void timeOut() {
    WorkflowStub stub = start("Counter", options().setWorkflowRunTimeout(Duration.ofSeconds(1)), 0);
    var error = fails(WorkflowFailedException.class, () -> stub.getResult(Integer.class));
    yes(error.getCause() instanceof TimeoutFailure, error.getCause());
  }

  private void alreadyStarted() {
    var options = options();
    WorkflowStub first = start("Counter", options, 0);
    fails(WorkflowExecutionAlreadyStarted.class, () -> start("Counter", options, 0));
    options.setWorkflowIdConflictPolicy(WorkflowIdConflictPolicy.WORKFLOW_ID_CONFLICT_POLICY_USE_EXISTING);
    same(start("Counter", options, 0).getExecution(), first.getExecution());
    options.setWorkflowIdConflictPolicy(
        WorkflowIdConflictPolicy.WORKFLOW_ID_CONFLICT_POLICY_TERMINATE_EXISTING);
    WorkflowStub third = start("Counter", options, 0);
    same(status(first), WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_TERMINATED);
    third.terminate("enough");
    var refusing =
        WorkflowOptions.newBuilder()
            .setTaskQueue(queue)
            .setWorkflowId(third.getExecution().getWorkflowId())
            .setWorkflowIdReusePolicy(WorkflowIdReusePolicy.WORKFLOW_ID_REUSE_POLICY_REJECT_DUPLICATE);
    fails(WorkflowExecutionAlreadyStarted.class, () -> start("Counter", refusing, 0));
  }

  private void reset() throws Exception {
    WorkflowStub stub = start("Counter", options(), 0);
    same(stub.update("addUpdate", Integer.class, 5), 5);
    stub.signal("add", 2);
    until("the signal", () -> total(stub) == 7);
    String id = stub.getExecution().getWorkflowId();
    var request =
        ResetWorkflowExecutionRequest.newBuilder()
            .setNamespace("default")
            .setWorkflowExecution(WorkflowExecution.newBuilder().setWorkflowId(id))
            .setWorkflowTaskFinishEventId(4)
            .setRequestId(id)
            .setReason("a check")
            .build();
    String runId = service.blockingStub().resetWorkflowExecution(request).getRunId();
    var execution = WorkflowExecution.newBuilder().setWorkflowId(id).setRunId(runId).build();
    WorkflowStub after = client.newUntypedWorkflowStub(execution, java.util.Optional.empty());
    until("the update and the signal again", () -> total(after) == 7);
    finish(after, 7);
  }

  private void asyncCompletion() throws Exception {
    var completing = client.newActivityCompletionClient();
    for (String mode : new String[] {"token", "id"}) {
      WorkflowStub stub = start("Does", options(), "outside", mode);
      until("the activity", () -> Flows.TOKENS.containsKey(mode));
      var where = Flows.TOKENS.get(mode);
      if (mode.equals("token")) {
        completing.heartbeat(where.token(), "still there");
        completing.complete(where.token(), mode);
      } else {
        completing.complete(
            where.workflowId(), java.util.Optional.of(where.runId()), where.activityId(), mode);
      }
      same(stub.getResult(String.class), mode);
      fails(ActivityCompletionException.class, () -> completing.complete(where.token(), mode));
    }
  }

  private void externalWorkflow() {
    WorkflowStub target = start("Counter", options(), 0);
    same(does("signal-another", target.getExecution().getWorkflowId()), "sent");
    same(target.getResult(Integer.class), 3);
    WorkflowStub victim = start("Counter", options(), 0);
    String said = does("cancel-another", victim.getExecution().getWorkflowId());
    yes(!said.equals("no error"), said);
    var error = fails(WorkflowFailedException.class, () -> victim.getResult(Integer.class));
    yes(error.getCause() instanceof CanceledFailure, error.getCause());
  }

  private WorkerFactory work() {
    WorkerFactory factory = WorkerFactory.newInstance(client);
    var worker = factory.newWorker(queue);
    worker.registerWorkflowImplementationTypes(
        Flows.DoesImpl.class, Flows.CounterImpl.class, Flows.AttributesImpl.class);
    worker.registerActivitiesImplementations(new Flows.ActsImpl());
    factory.start();
    return factory;
  }

  private static long stop(WorkerFactory factory) {
    long began = System.nanoTime();
    factory.shutdown();
    factory.awaitTermination(30, TimeUnit.SECONDS);
    return TimeUnit.NANOSECONDS.toMillis(System.nanoTime() - began);
  }

  private void workerStop(WorkerFactory first) {
    WorkflowStub stub = start("Counter", options(), 1);
    same(total(stub), 1);
    long stopped = stop(first);
    WorkerFactory second = work();
    long began = System.nanoTime();
    same(total(stub), 1);
    long handed = TimeUnit.NANOSECONDS.toMillis(System.nanoTime() - began);
    finish(stub, 1);
    stop(second);
    System.err.println("worker stopped in " + stopped + " ms, the next one answered in " + handed + " ms");
    yes(stopped < 3000 && handed < 3000, "stop " + stopped + " ms, hand over " + handed + " ms");
  }

  private void registerAttributes(String address) {
    var operator =
        OperatorServiceStubs.newServiceStubs(
            OperatorServiceStubsOptions.newBuilder().setTarget(address).validateAndBuildWithDefaults());
    var request =
        AddSearchAttributesRequest.newBuilder()
            .setNamespace("default")
            .putSearchAttributes("HoldfastKeyword", IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD)
            .putSearchAttributes("HoldfastInt", IndexedValueType.INDEXED_VALUE_TYPE_INT)
            .build();
    try {
      operator.blockingStub().addSearchAttributes(request);
    } catch (StatusRuntimeException error) {
      if (error.getStatus().getCode() != Status.Code.ALREADY_EXISTS) {
        throw error;
      }
    }
    operator.shutdown();
  }

  public static void main(String[] arguments) {
    String only = arguments.length > 1 ? arguments[1] : "";
    Check check = new Check(arguments[0]);
    check.registerAttributes(arguments[0]);
    WorkerFactory factory = check.work();
    check.checks.put("worker-stop", () -> check.workerStop(factory));
    ExecutorService thread = Executors.newCachedThreadPool();
    boolean passed = true;
    for (var one : check.checks.entrySet()) {
      if (!one.getKey().contains(only)) {
        continue;
      }
      long began = System.nanoTime();
      String failure = null;
      try {
        thread
            .submit(
                () -> {
                  one.getValue().run();
                  return null;
                })
            .get(40, TimeUnit.SECONDS);
      } catch (Exception error) {
        var text = new StringBuilder();
        for (Throwable cause = error; cause != null; cause = cause.getCause()) {
          text.append(" | ").append(cause);
        }
        failure = text.toString().replace('\n', ' ');
      }
      long took = TimeUnit.NANOSECONDS.toMillis(System.nanoTime() - began);
      passed = passed && failure == null;
      String verdict = failure == null ? "ok" : "FAIL";
      System.out.println(verdict + " " + one.getKey() + " " + took + (failure == null ? "" : failure));
    }
    check.service.shutdownNow();
    System.exit(passed ? 0 : 1);
  }
}
