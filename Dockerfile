FROM python:3.11-slim
RUN useradd --create-home cprs
COPY pyproject.toml README.md LICENSE /src/
COPY cprs_integrations /src/cprs_integrations
RUN pip install --no-cache-dir "/src[serve]" && rm -r /src
USER cprs
EXPOSE 8000
HEALTHCHECK CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=3)"]
# anybody can reach a published port: set CPRS_TOKEN
CMD ["cprs", "serve", "--host", "0.0.0.0", "--port", "8000"]
