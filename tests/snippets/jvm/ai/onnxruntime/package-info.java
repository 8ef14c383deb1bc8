/**
 * What Loop.kt calls of ONNX Runtime's Java API, by the signatures of its documentation. ONNX Runtime publishes that API to Maven
 * alone; here a session is a Python process that runs the program with ONNX Runtime (session.py).
 */
package ai.onnxruntime;
