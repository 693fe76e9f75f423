import os
import time


def app(environ, start_response):
    time.sleep(int(environ["PATH_INFO"].rsplit("/", 1)[1]) / 1000)
    body = b"gunicorn %d" % os.getpid()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
